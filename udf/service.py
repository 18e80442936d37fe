"""The encoder service: one process per installation that holds the model for all workers.

It is started by a worker that found none, forks into the background, tells the worker over a pipe
that it listens (or why it cannot), and leaves by itself when no worker has been connected for the
grace period. It gives way to a newer installation: it stops listening, finishes what it has begun,
and leaves. Should it hang, its watchdog ends it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clickhouse_clip.udf import __version__, frames, launch
from clickhouse_clip.udf.bundle import MANIFEST, load_manifest
from clickhouse_clip.udf.catalog import BY_NAME
from clickhouse_clip.udf.confine import confine
from clickhouse_clip.udf.errors import ClipError, ServiceError
from clickhouse_clip.udf.greeting import Hello, receive_hello
from clickhouse_clip.udf.service_log import open_log
from clickhouse_clip.udf.settings import Settings
from clickhouse_clip.udf.sources import Sources, identity
from clickhouse_clip.udf.watchdog import Watchdog

if TYPE_CHECKING:
    from clickhouse_clip.udf.session import Session

_log = logging.getLogger("clickhouse_clip.udf.service")

#: How often the service looks whether it is still needed.
_TICK_SECONDS = 0.5

#: How long blocks under way may take when the service is told to leave.
_FINISH_SECONDS = 600.0


class Service:
    """Accepts connections on the socket in the runtime folder, until it is not needed any more."""

    def __init__(self, settings_path: Path) -> None:
        self._settings_source = Sources([settings_path])
        content = settings_path.read_bytes()
        self._digest = hashlib.sha256(content).hexdigest()
        self._settings = settings = Settings.load(settings_path)
        open_log(settings)
        self._manifest_source = Sources([settings.bundle / MANIFEST])
        manifest = load_manifest(settings.bundle)
        self._directory = launch.open_runtime_dir(str(settings.runtime_dir))
        self._listener = _listen(self._directory)
        self._socket_id = identity(launch.SOCKET_NAME, self._directory)
        if not confine((settings.log_file.parent, settings.runtime_dir)):
            _log.info("this kernel has no Landlock: only permissions keep the service in its place")
        # Workers may connect from now on; what follows takes the time that they need to do so.
        from clickhouse_clip.udf.encoder import Encoder

        self._encoder = Encoder(settings, manifest, device_lost=self.retire)
        self._started = time.monotonic()
        self._sessions: dict[Session, socket.socket] = {}
        self._lock = threading.Lock()
        self._retiring = threading.Event()

    def run(self) -> None:
        """Serve until retired, or until no worker has been there for the grace period."""
        Watchdog(self._encoder.tasks, self._connected, self.retire).start()
        self._listener.settimeout(_TICK_SECONDS)
        needed = time.monotonic()
        while not self._retiring.is_set():
            if self._accept():
                needed = time.monotonic()
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

    def _accept(self) -> bool:
        """Serve who comes within the tick; False if nobody does."""
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return False
        except OSError as error:
            if not self._retiring.is_set():  # `retire` shuts the listener
                _log.error("a connection cannot be accepted: %s", error)
                time.sleep(_TICK_SECONDS)
            return False
        try:
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
        except RuntimeError as error:
            # Too many threads, or too little memory for one. The worker can say so.
            _log.error("a connection cannot be served: %s", error)
            with connection, contextlib.suppress(OSError):
                message = f"the encoder service cannot take another worker: {error}"
                connection.sendall(frames.encode(frames.ERROR, 0, message.encode()))
            if not self._connected():
                self.retire()  # of no use to anybody; a new one may find more
        return True

    def _connected(self) -> list[Session]:
        with self._lock:
            return list(self._sessions)

    def retire(self) -> None:
        """Stop listening, so that the next worker starts a new service; then finish and leave."""
        with self._lock:
            if not self._retiring.is_set():
                # Before the listener is closed: after that, the name may be a newer service's.
                if identity(launch.SOCKET_NAME, self._directory) == self._socket_id:
                    _remove_socket(self._directory)
                self._retiring.set()
                self._listener.shutdown(socket.SHUT_RDWR)

    def _retire_if_replaced(self) -> None:
        """Give way if nobody can reach this service, or if what it was started with has changed."""
        if self._retiring.is_set():
            return
        if identity(launch.SOCKET_NAME, self._directory) != self._socket_id:
            _log.warning("the socket has been removed: giving way")
            self.retire()
        towers = list(self._encoder.sources.values())
        for sources in (self._settings_source, self._manifest_source, *towers):
            path = sources.changed()
            if path is not None:
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

    def _greet(self, connection: socket.socket) -> Hello | None:
        """The peer's HELLO if it is a worker to serve; others have had their answer."""
        hello = receive_hello(connection)
        if hello.role == "worker":
            # Now, not at the next tick: the worker may come because its session found it out.
            self._retire_if_replaced()
            if hello.settings != self._digest or _is_newer(hello.version):
                _log.info("giving way to version %s with other settings or code", hello.version)
                self.retire()
            if self._retiring.is_set():
                return hello
            if hello.protocol != frames.PROTOCOL or hello.function not in BY_NAME:
                message = (
                    f"this worker (version {hello.version}) and the encoder service "
                    f"({__version__}) do not know each other's {hello.function}; "
                    "SYSTEM RELOAD FUNCTIONS starts new workers"
                )
                connection.sendall(frames.encode(frames.ERROR, 0, message.encode()))
            else:
                return hello
        else:
            connection.sendall(frames.encode(frames.REPORT, 0, json.dumps(self.report()).encode()))
            if hello.role == "stop":
                _log.info("told to leave")
                self.retire()
        return None

    def _serve_worker(self, connection: socket.socket, hello: Hello) -> None:
        from clickhouse_clip.udf.session import Session

        with self._lock:
            if self._retiring.is_set():
                connection.sendall(frames.encode(frames.RETIRED))
                return
            session = Session(connection, BY_NAME[hello.function], self._encoder, hello.skip)
            self._sessions[session] = connection  # `run` waits for it from here on
        try:
            connection.sendall(frames.encode(frames.WELCOME))
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
    listener.listen(1024)
    return listener


def _remove_socket(directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(launch.SOCKET_NAME, dir_fd=directory)


def _is_newer(version: str) -> bool:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(".") if part.isdigit()]

    return numbers(version) > numbers(__version__)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Nobody comes after the encoder's thread or the watchdog: queries would wait for ever."""
    name = failure.thread.name if failure.thread else "a thread"
    where = (failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    _log.critical("%s failed", name, exc_info=where)
    if name in ("encoder", "watchdog"):
        logging.shutdown()
        os._exit(1)


def _tell(ready: int, message: bytes) -> None:
    try:
        os.write(ready, message)
    except OSError:
        pass  # the worker that started us has gone; others may still come
    os.close(ready)


def main(argv: list[str]) -> int:
    """Start the service.

    `argv`: the settings file, the descriptor of the ready pipe, and what is to be logged first.
    """
    settings_path, ready, note = Path(argv[0]), int(argv[1]), argv[2]
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
    threading.excepthook = _thread_failed
    _tell(ready, b"ready")
    if note:
        _log.warning("%s", note)
    _log.info("version %s listens, settings %s", __version__, settings_path)
    service.run()
    logging.shutdown()
    os._exit(0)  # not held up by a thread that hangs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
