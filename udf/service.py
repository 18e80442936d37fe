"""The encoder service: one process per installation that holds the model for all workers.

It is started by a worker that found none, forks into the background, tells the worker over a pipe
that it listens (or why it cannot), and leaves by itself when no worker has been connected for the
grace period. It gives way to a newer installation: it stops listening, finishes what it has begun,
and leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import logging.handlers
import os
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

from clickhouse_clip.udf import __version__, frames, launch
from clickhouse_clip.udf.bundle import MANIFEST, load_manifest
from clickhouse_clip.udf.catalog import BY_NAME
from clickhouse_clip.udf.errors import ClipError, ServiceError
from clickhouse_clip.udf.settings import Settings

_log = logging.getLogger("clickhouse_clip.udf.service")

#: A peer that has connected says HELLO at once.
_HELLO_SECONDS = 10.0

#: How often the service looks whether it is still needed.
_TICK_SECONDS = 0.5

#: How long blocks under way may take when the service is told to leave.
_FINISH_SECONDS = 600.0


class Service:
    """Accepts connections on the socket in the runtime folder, until it is not needed any more."""

    def __init__(self, settings_path: Path) -> None:
        content = settings_path.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        self._settings = settings = Settings.load(settings_path)
        _open_log(settings)
        manifest = load_manifest(settings.bundle)
        self._directory = launch.open_runtime_dir(str(settings.runtime_dir))
        self._listener = _listen(self._directory)
        self._socket_id = _identity(launch.SOCKET_NAME, self._directory)
        self._sources = (settings_path, settings.bundle / MANIFEST)
        self._source_ids = [_identity(path) for path in self._sources]
        # Workers may connect from now on; what follows takes the time that they need to do so.
        from clickhouse_clip.udf.encoder import Encoder

        self._encoder = Encoder(settings, manifest)
        self._started = time.monotonic()
        self._sessions: dict[Any, socket.socket] = {}
        self._lock = threading.Lock()
        self._retiring = threading.Event()

    def run(self) -> None:
        """Serve until retired, or until no worker has been there for the grace period."""
        self._listener.settimeout(_TICK_SECONDS)
        needed = time.monotonic()
        while not self._retiring.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                pass  # nobody came within the tick, or `retire` has shut the listener
            else:
                needed = time.monotonic()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            self._retire_if_replaced()
            if self._sessions:
                needed = time.monotonic()
            elif time.monotonic() - needed > self._settings.grace_seconds:
                _log.info("no worker for %.0f s: leaving", self._settings.grace_seconds)
                self.retire()
        self._listener.close()
        deadline = time.monotonic() + _FINISH_SECONDS
        while self._sessions and time.monotonic() < deadline:
            self._close_idle_sessions()
            time.sleep(0.02)
        _log.info("left")

    def retire(self) -> None:
        """Stop listening, so that the next worker starts a new service; then finish and leave."""
        with self._lock:
            if not self._retiring.is_set():
                # Before the listener is closed: after that, the name may be a newer service's.
                if _identity(launch.SOCKET_NAME, self._directory) == self._socket_id:
                    _remove_socket(self._directory)
                self._retiring.set()
                self._listener.shutdown(socket.SHUT_RDWR)

    def _retire_if_replaced(self) -> None:
        """Give way if nobody can reach this service, or if what it was started with has changed."""
        if _identity(launch.SOCKET_NAME, self._directory) != self._socket_id:
            _log.warning("the socket has been removed: giving way")
            self.retire()
        for path, identity in zip(self._sources, self._source_ids, strict=True):
            # A file that is gone for a moment is being replaced, or the model is loaded anyway.
            if _identity(path) not in (identity, None):
                _log.info("%s has changed: giving way", path)
                self.retire()

    def _close_idle_sessions(self) -> None:
        with self._lock:
            for session, connection in self._sessions.items():
                session.retiring = True
                if session.idle:
                    connection.shutdown(socket.SHUT_RD)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                hello = self._greet(connection)
                if hello is not None:
                    self._serve_worker(connection, hello)
        except OSError as error:
            _log.debug("a connection broke: %s", error)
        except ClipError as error:
            _log.warning("a peer was refused: %s", error)

    def _greet(self, connection: socket.socket) -> dict[str, Any] | None:
        """The peer's HELLO if it is a worker to serve; others have had their answer."""
        _check_peer(connection)
        connection.settimeout(_HELLO_SECONDS)
        hello = _receive_hello(connection)
        connection.settimeout(None)
        role = hello.get("role")
        if role == "worker":
            if hello["settings"] != self._digest or _is_newer(hello["version"]):
                _log.info("giving way to version %s with other settings or code", hello["version"])
                self.retire()
            if self._retiring.is_set():
                connection.sendall(frames.encode(frames.RETIRED))
            elif hello["protocol"] != frames.PROTOCOL or hello["function"] not in BY_NAME:
                message = (
                    f"this worker (version {hello['version']}) and the encoder service "
                    f"({__version__}) do not know each other's {hello['function']}; "
                    "SYSTEM RELOAD FUNCTIONS starts new workers"
                )
                connection.sendall(frames.encode(frames.ERROR, 0, message.encode()))
            else:
                connection.sendall(frames.encode(frames.WELCOME))
                return hello
        elif role in ("status", "stop"):
            connection.sendall(frames.encode(frames.REPORT, 0, json.dumps(self.report()).encode()))
            if role == "stop":
                _log.info("told to leave")
                self.retire()
        return None

    def _serve_worker(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        from clickhouse_clip.udf.session import Session

        function = BY_NAME[hello["function"]]
        session = Session(connection, function, self._encoder, int(hello["skip"]))
        with self._lock:
            self._sessions[session] = connection
        try:
            session.run()
        finally:
            with self._lock:
                del self._sessions[session]

    def report(self) -> dict[str, Any]:
        """What `clip-encoder status` shows."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "workers": len(self._sessions),
            "memory_bytes": _resident_bytes(),
            "log_file": str(self._settings.log_file),
            **self._encoder.report(),
        }


def _listen(directory: int) -> socket.socket:
    """Listen in the runtime folder; the caller's worker holds the lock."""
    _remove_socket(directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(launch.socket_address(directory))
    except OSError as error:
        raise ServiceError(f"the socket cannot be made ({error.strerror})") from error
    listener.listen(128)
    return listener


def _remove_socket(directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(launch.SOCKET_NAME, dir_fd=directory)


def _identity(path: str | Path, directory: int | None = None) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written; None if there is none."""
    try:
        status = os.stat(path, dir_fd=directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _check_peer(connection: socket.socket) -> None:
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    pid, user, _ = struct.unpack("3i", credentials)
    if user not in (os.geteuid(), 0):
        raise ServiceError(f"process {pid} of user {user} is not the server's")


def _receive_hello(connection: socket.socket) -> dict[str, Any]:
    received = frames.FrameReader()
    while data := connection.recv(65536):
        for kind, _, payload in received.feed(data):
            hello = json.loads(payload)
            if kind != frames.HELLO or not isinstance(hello, dict):
                raise ServiceError("the first frame is no HELLO")
            return hello
    raise ServiceError("it left without a HELLO")


def _is_newer(version: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return numbers(version) > numbers(__version__)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_log(settings: Settings) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    try:
        settings.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler: logging.Handler = logging.handlers.RotatingFileHandler(
            settings.log_file, maxBytes=settings.log_max_bytes // 2, backupCount=1
        )
    except OSError as error:
        raise ServiceError(
            f"the log {settings.log_file} cannot be written ({error.strerror}); "
            f"user {os.geteuid()} must be able to"
        ) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    root.addHandler(handler)
    logging.raiseExceptions = False  # a full disk must not fail queries
    logging.captureWarnings(True)


def _tell(ready: int, message: bytes) -> None:
    try:
        os.write(ready, message)
    except OSError:
        pass  # the worker that started us has gone; others may still come
    os.close(ready)


def main(argv: list[str]) -> int:
    """Start the service: `argv` holds the settings file and the descriptor of the ready pipe."""
    settings_path, ready = Path(argv[0]), int(argv[1])
    if os.fork():
        os._exit(0)  # the worker that waits for this process must not be its parent
    os.umask(0o077)
    # A session whose worker has gone gets EPIPE, not a signal.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        service = Service(settings_path)
    except ClipError as error:
        _tell(ready, str(error).encode())
        return 1
    except Exception as error:
        _tell(ready, f"{type(error).__name__}: {error}".encode())
        return 1
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=service.retire).start())
    _tell(ready, b"ready")
    _log.info("version %s listens, settings %s", __version__, settings_path)
    service.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
