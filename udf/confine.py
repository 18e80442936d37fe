"""Giving up what the encoder service does not need: it decodes what strangers have made.

Should a decoder have a hole, what comes through it runs as the server's user. From then on it can
start no program, gain no rights by one, write no file but the service's own, open no TCP
connection, send no signal to the server, and leave no core file. It can read what the server's user
can read; see docs/security.md.

Linux only, by its system calls: there is no other way to them from Python's standard library.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from clickhouse_clip.udf.errors import ServiceError

_PR_SET_NO_NEW_PRIVS = 38

# Landlock, see landlock(7) and linux/landlock.h. The numbers of its system calls are the same on
# every processor that there are wheels for.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
#: REMOVE_DIR, REMOVE_FILE and all MAKE_*.
_CHANGE_FOLDER = 0x1FF0
_REFER = 1 << 13  # version 2
_TRUNCATE = 1 << 14  # version 3
_TCP = 0b11  # version 4: bind, connect
_SCOPES = 0b11  # version 6: abstract sockets and signals of processes outside

#: Where devices are written to, a GPU's among them.
_DEVICES = Path("/dev")

#: What a library may want to know of the server's environment. Not among it: proxies, passwords
#: given to the server, LD_PRELOAD, PYTHON*.
_KEPT = frozenset({"PATH", "LANG", "TZ", "LD_LIBRARY_PATH"})
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_")


def kept_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that the service gets."""
    return {
        name: value
        for name, value in environment.items()
        if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }


def confine(writable: Iterable[Path]) -> bool:
    """Give up all that is said above, except writing in the folders `writable`, for good.

    To be called before the process has a second thread. Returns whether the kernel has Landlock,
    which most of it takes. Raises `ServiceError` if what every kernel has is refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
    # 1, not 0: to a program that core files are piped to, the kernel gives none for this limit only
    # (see do_coredump in fs/coredump.c).
    limit = min(limit, 1) if limit != resource.RLIM_INFINITY else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise ServiceError(f"no_new_privs cannot be set ({os.strerror(ctypes.get_errno())})")
    version = libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    if version < 1:
        return False
    files = _EXECUTE | _WRITE_FILE | _CHANGE_FOLDER
    files |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    # The kernel knows the attributes of its version only, and takes as many bytes.
    attributes = [files]
    if version >= 4:
        attributes.append(_TCP)
    if version >= 6:
        attributes.append(_SCOPES)
    _landlock(libc, attributes, files & ~_EXECUTE, writable)
    return True


def _landlock(
    libc: ctypes.CDLL, attributes: list[int], allowed: int, writable: Iterable[Path]
) -> None:
    ruleset_attributes = (ctypes.c_uint64 * len(attributes))(*attributes)
    ruleset = _checked(
        libc.syscall(_CREATE_RULESET, ruleset_attributes, ctypes.sizeof(ruleset_attributes), 0)
    )
    try:
        for folder in (*writable, _DEVICES):
            descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                # struct landlock_path_beneath_attr, packed: allowed_access, parent_fd.
                rule = struct.pack("=Qi", allowed, descriptor)
                _checked(libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
            finally:
                os.close(descriptor)
        _checked(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _checked(result: int) -> int:
    if result < 0:
        raise ServiceError(f"Landlock cannot be set up ({os.strerror(ctypes.get_errno())})")
    return result
