"""Connecting to the encoder service, and starting it where there is none.

One service per installation: its socket lies in the runtime folder, which belongs to the server's
user alone. Whoever finds nobody listening starts the service while holding a lock, so a hundred
workers that start at once still make one. Standard library only: workers use this.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import stat
import sys
import time

from clickhouse_clip.udf import __version__, frames
from clickhouse_clip.udf.errors import ServiceError

SOCKET_NAME = "encoder.sock"

#: Isolated, and writing no .pyc files: whose they would be depends on who asks first.
_SERVICE = ("-IBm", "clickhouse_clip.udf.service")

LOCK_NAME = "encoder.lock"

#: A service is up in about 0.1 s; a machine that needs longer than this is in real trouble.
_START_SECONDS = 60.0

#: The service answers a greeting at once, also while it loads a model or encodes.
_GREETING_SECONDS = 30.0


def connect(settings_path: str, function: str, skip: int) -> socket.socket:
    """A connection on which the service has accepted `function`; not blocking.

    `skip` rows of the first block have been answered already, by a service that died. Starts the
    service if none answers. Raises `ServiceError` with the reason why it cannot be had.
    """
    digest, runtime_dir = _read_settings(settings_path)
    hello = {
        "protocol": frames.PROTOCOL,
        "version": __version__,
        "settings": digest,
        "role": "worker",
        "function": function,
        "skip": skip,
    }
    directory = open_runtime_dir(runtime_dir)
    try:
        service = _greet(directory, hello)
        if service is None:
            with _Lock(directory, runtime_dir):
                # Another worker may have started it while this one waited for the lock.
                service = _greet(directory, hello)
                if service is None:
                    _start(settings_path)
                    service = _greet(directory, hello)
    finally:
        os.close(directory)
    if service is None:
        raise ServiceError("the encoder service started and left at once; its log says why")
    service.setblocking(False)
    return service


def request_report(runtime_dir: str, role: str) -> dict[str, object] | None:
    """A running service's report, asked for it (`status`) or for its end (`stop`), or None."""
    if not os.path.isdir(runtime_dir):
        return None  # and asking does not make it: root may ask, to whom it must not belong
    directory = open_runtime_dir(runtime_dir)
    try:
        connection = _connect(directory)
        if connection is None:
            return None
        with connection:
            hello = {"protocol": frames.PROTOCOL, "version": __version__, "role": role}
            answer = _ask(connection, hello)
    finally:
        os.close(directory)
    if answer is None or answer[0] != frames.REPORT:
        raise ServiceError("the encoder service did not answer; is it of another version?")
    report = json.loads(answer[1])
    assert isinstance(report, dict)
    return report


def socket_address(directory: int) -> str:
    """The socket's path through an open folder: a Unix address holds 107 bytes at most."""
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"


def open_runtime_dir(path: str) -> int:
    """A descriptor of the runtime folder, made if need be; refused unless it is ours alone."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ServiceError(
            f"the runtime folder {path} cannot be used ({error.strerror}); "
            f"user {os.geteuid()} must be able to create it"
        ) from error
    status = os.fstat(directory)
    # root may look at any server's service.
    if os.geteuid() not in (status.st_uid, 0) or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(directory)
        raise ServiceError(
            f"the runtime folder {path} must belong to user {os.geteuid()} with mode 0700; "
            "remove it, the next query makes it anew"
        )
    return directory


def _read_settings(path: str) -> tuple[str, str]:
    try:
        with open(path, "rb") as file:
            content = file.read()
        runtime_dir = json.loads(content)["runtime_dir"]
    except OSError as error:
        raise ServiceError(
            f"{path} cannot be read ({error.strerror}); run install-udfs again"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"{path} holds no runtime_dir; run install-udfs again") from error
    return hashlib.sha256(content).hexdigest(), str(runtime_dir)


def _connect(directory: int) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(socket_address(directory))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise ServiceError(f"the encoder service cannot be reached ({error.strerror})") from error
    return connection


def _greet(directory: int, hello: dict[str, object]) -> socket.socket | None:
    """An accepted connection, or None where a service has to be started."""
    connection = _connect(directory)
    if connection is None:
        return None
    try:
        answer = _ask(connection, hello)
    except ServiceError:
        connection.close()
        raise
    if answer is not None and answer[0] == frames.WELCOME:
        return connection
    connection.close()
    if answer is None or answer[0] == frames.RETIRED:
        return None
    raise ServiceError(answer[1].decode())


def _ask(connection: socket.socket, hello: dict[str, object]) -> tuple[int, bytes] | None:
    """The first frame that comes back; None if the service left instead."""
    connection.settimeout(_GREETING_SECONDS)
    received = frames.FrameReader()
    try:
        connection.sendall(frames.encode(frames.HELLO, 0, json.dumps(hello).encode()))
        while data := connection.recv(65536):
            for kind, _, payload in received.feed(data):
                return kind, payload
    except TimeoutError as error:
        raise ServiceError(
            f"the encoder service did not answer within {_GREETING_SECONDS:.0f} s; "
            "its log says what it does, `clip-encoder stop` ends it"
        ) from error
    except OSError:
        pass
    return None


class _Lock:
    """An exclusive lock in the runtime folder, given up when its holder dies."""

    def __init__(self, directory: int, runtime_dir: str) -> None:
        self._directory = directory
        self._runtime_dir = runtime_dir

    def __enter__(self) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._file = os.open(LOCK_NAME, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise ServiceError(
                f"{self._runtime_dir}/{LOCK_NAME} cannot be made ({error.strerror})"
            ) from error
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._file)
                    raise ServiceError(
                        f"another worker has been starting the encoder service for more than "
                        f"{_START_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.01)
            else:
                return

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _start(settings_path: str) -> None:
    """Start the service and wait until it listens; `ServiceError` with its reason if it cannot."""
    import select  # only the one worker that starts the service pays for these
    import subprocess

    listening, ready = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *_SERVICE, settings_path, str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(ready,),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        os.close(listening)
        raise ServiceError(
            f"the encoder service cannot be started: {sys.executable}: {error.strerror}"
        ) from error
    finally:
        os.close(ready)
    message = b""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        waiting = max(0.0, deadline - time.monotonic())
        if not select.select([listening], [], [], waiting)[0]:
            process.kill()
            break
        data = os.read(listening, 65536)
        message += data
        if not data or message == b"ready":
            break
    os.close(listening)
    process.wait()  # it forks: the service itself belongs to nobody
    if message != b"ready":
        reason = message.decode() or "it left without a word; is the machine out of memory?"
        raise ServiceError(f"the encoder service cannot be started: {reason}")
