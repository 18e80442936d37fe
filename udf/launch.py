"""Connecting to the encoder service, and starting it where there is none.

One service per installation: its socket lies in the runtime folder, which belongs to the server's
user alone. Whoever finds nobody listening starts the service while holding a lock, so a hundred
workers that start at once still make one; a service that listens and says nothing is killed first.
Standard library only: workers use this.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Callable

from clickhouse_clip.udf import __version__, frames
from clickhouse_clip.udf.errors import ProtocolError, ServiceError

SOCKET_NAME = "encoder.sock"

LOCK_NAME = "encoder.lock"

#: The service answers a greeting at once, also while it loads a model or encodes.
_GREETING_SECONDS = 20.0

#: For whoever holds the lock to start a service, to find that it left, and to start another.
_LOCK_SECONDS = 180.0

#: A service that was killed while it started, or gave way at once, is no reason to fail a query.
_STARTS = 3


class _SilentServiceError(ServiceError):
    """The service does not answer. `pid` is its process, or 0 if it does not even accept."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"the encoder service did not answer within {_GREETING_SECONDS:.0f} s; "
            "its log says what it did, `clip-encoder stop` ends it"
        )
        self.pid = pid


def connect(settings_path: str, function: str, skip: int, note: str = "") -> socket.socket:
    """A connection on which the service has accepted `function`; not blocking.

    `skip` rows of the first block have been answered already, by a service that died. Starts the
    service if none answers; `note`, if there is one, goes to its log then. Raises `ServiceError`
    with the reason why it cannot be had.
    """

    def greet() -> socket.socket | None:
        # Read each time: they may be replaced meanwhile, and a service is of those there are now.
        hello = {
            "protocol": frames.PROTOCOL,
            "version": __version__,
            "settings": _read_settings(settings_path)[0],
            "role": "worker",
            "function": function,
            "skip": skip,
        }
        return _greet(directory, hello)

    runtime_dir = _read_settings(settings_path)[1]
    directory = open_runtime_dir(runtime_dir)
    try:
        service = silent = None
        try:
            service = greet()
        except _SilentServiceError as error:
            silent = error
        if service is None:
            with _Lock(directory, runtime_dir):
                if silent is not None and _end_if_still(silent, directory):
                    note = f"{silent}: killed process {silent.pid}"
                else:
                    # Another worker may have started it while this one waited for the lock.
                    service = greet()
                if service is None:
                    service = _start(settings_path, greet, note)
    finally:
        os.close(directory)
    service.setblocking(False)
    return service


def request_report(runtime_dir: str, role: str) -> dict[str, object] | None:
    """A running service's report, asked for it (`status`) or for its end (`stop`), or None.

    A service that is to end and cannot say so is killed; its report then holds `pid` alone.
    """
    if not os.path.isdir(runtime_dir):
        return None  # and asking does not make it: root may ask, to whom it must not belong
    directory = open_runtime_dir(runtime_dir, to_look=True)
    try:
        # One that leaves may hang up on us; then nobody listens, or its successor does.
        for _ in range(_STARTS):
            connection = _connect(directory)
            if connection is None:
                return None
            with connection:
                answer = _ask_for_report(connection, role)
            if answer is not None:
                break
    finally:
        os.close(directory)
    if answer is None:
        raise ServiceError("the encoder service did not answer; is it of another version?")
    if answer[0] != frames.REPORT:
        raise ServiceError(answer[1].decode("utf-8", "replace"))
    report = json.loads(answer[1])
    assert isinstance(report, dict)
    return report


def _ask_for_report(connection: socket.socket, role: str) -> tuple[int, bytes] | None:
    hello: dict[str, object] = {
        "protocol": frames.PROTOCOL,
        "version": __version__,
        "role": role,
    }
    try:
        answer = _ask(connection, hello)
    except _SilentServiceError:
        if role != "stop":
            raise
    else:
        if role != "stop" or answer is None or answer[0] == frames.REPORT:
            return answer
        # It has no thread or memory left to be told.
    pid = peer_of(connection)[0]
    end_hung(connection)
    return frames.REPORT, json.dumps({"pid": pid}).encode()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a connection."""
    layout = struct.Struct("3i")
    pid, user, _ = layout.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    )
    return pid, user


def end_hung(connection: socket.socket) -> None:
    """Kill the process at the other end: it will not go by itself."""
    pid = peer_of(connection)[0]
    if pid > 0:  # 0: it lives among other process ids, where we cannot reach it
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


def socket_address(directory: int) -> str:
    """The socket's path through an open folder: a Unix address holds 107 bytes at most."""
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"


def open_runtime_dir(path: str, *, to_look: bool = False) -> int:
    """A descriptor of the runtime folder, made if need be; refused unless it is ours alone.

    With `to_look`, root may open any user's: to ask a service, not to trust it with rows.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ServiceError(
            f"the runtime folder {path} cannot be used ({error.strerror}); "
            f"user {os.geteuid()} must be able to create it"
        ) from error
    status = os.fstat(directory)
    ours = status.st_uid == os.geteuid() or (to_look and os.geteuid() == 0)
    if not ours or stat.S_IMODE(status.st_mode) & 0o077:
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
    # For a service that hangs behind as many connections as may wait to be accepted.
    limit = struct.pack("ll", int(_GREETING_SECONDS), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        connection.connect(socket_address(directory))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BlockingIOError as error:
        connection.close()
        raise _SilentServiceError(0) from error
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
    raise ServiceError(answer[1].decode("utf-8", "replace"))


def _ask(connection: socket.socket, hello: dict[str, object]) -> tuple[int, bytes] | None:
    """The first frame that comes back; None if the service left instead."""
    received = frames.FrameReader((frames.WELCOME, frames.RETIRED, frames.ERROR, frames.REPORT))
    deadline = time.monotonic() + _GREETING_SECONDS
    try:
        connection.settimeout(_GREETING_SECONDS)
        try:
            connection.sendall(frames.encode(frames.HELLO, 0, json.dumps(hello).encode()))
        except BrokenPipeError:
            pass  # it has gone, and may have said why
        # No byte of what may follow, which is for whoever uses the connection.
        while data := connection.recv(received.missing):
            for kind, _, payload in received.feed(data):
                return kind, payload
            connection.settimeout(max(0.001, deadline - time.monotonic()))
    except TimeoutError as error:
        raise _SilentServiceError(peer_of(connection)[0]) from error
    except ProtocolError as error:
        raise ServiceError(f"the encoder service sent what is no answer: {error}") from error
    except OSError:
        pass
    return None


def _end_if_still(silent: _SilentServiceError, directory: int) -> bool:
    """Kill the service that did not answer, if it is still the one that listens."""
    try:
        connection = _connect(directory)
    except _SilentServiceError:
        return True  # the next one takes its socket's place, and it gives way if it comes back
    if connection is None:
        return False
    with connection:
        if peer_of(connection)[0] != silent.pid:
            return False
        end_hung(connection)
    return True


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
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._file)
                    raise ServiceError(
                        f"another worker has been starting the encoder service for more than "
                        f"{_LOCK_SECONDS:.0f} s"
                    ) from None
                time.sleep(0.01)
            else:
                return

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _start(
    settings_path: str, greet: Callable[[], socket.socket | None], note: str
) -> socket.socket:
    # Only the one worker that starts the service pays for what this imports.
    from clickhouse_clip.udf.start import start_service

    for _ in range(_STARTS):
        if start_service(settings_path, note):
            service = greet()
            if service is not None:
                return service
    raise ServiceError(
        f"the encoder service was started {_STARTS} times and left without a word; "
        "its log may say why; is the machine out of memory?"
    )
