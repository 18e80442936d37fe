"""The few ways in which the installer changes a disk, each durable when it returns.

Every system call that writes is in this module, so a test can make each of them fail.
"""

from __future__ import annotations

import os
from pathlib import Path

Ids = tuple[int, int]


def write(path: Path, content: bytes, mode: int, ids: Ids | None, mtime_ns: int | None) -> None:
    """Write a new file; `ids` (uid, gid) and `mtime_ns` None leave what the system gives it."""
    # A new file in any case: what is there may be a link that somebody has planted for root to
    # write through, or be held open by them.
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        pass
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        # The owner first: giving a file away clears the bits that only its owner may set.
        if ids is not None:
            os.fchown(descriptor, *ids)
        os.fchmod(descriptor, mode)
        if mtime_ns is not None:
            os.utime(descriptor, ns=(mtime_ns, mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, target: Path) -> None:
    """Put a file in another's place."""
    os.replace(path, target)  # noqa: PTH105 - see the module's docstring
    _sync(target.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)  # noqa: PTH108
    except FileNotFoundError:
        return
    _sync(path.parent)


def make_folder(path: Path, ids: Ids | None) -> None:
    """Make a folder that all may enter, whatever the umask."""
    os.mkdir(path)  # noqa: PTH102
    os.chmod(path, 0o755)
    if ids is not None:
        os.chown(path, *ids)
    _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it is there and empty: what others put there is theirs."""
    try:
        if any(path.iterdir()):
            return
        os.rmdir(path)  # noqa: PTH106
    except (FileNotFoundError, NotADirectoryError):
        return
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
