"""The worker against a scripted service: what it writes to stdout and stderr, to the byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.native import BlockReader, array_block_header, empty_rows
from tests.unit.udf.test_native import block, strings

Script = Callable[["Peer"], None]


class Peer:
    """One accepted connection of the scripted service."""

    def __init__(self, connection: socket.socket, hello: dict[str, object]) -> None:
        self.connection = connection
        self.hello = hello

    def read_block(self) -> list[bytes]:
        reader = BlockReader(1 << 30)
        while not reader.done:
            data = self.connection.recv(65536)
            if not data:
                raise ConnectionError
            assert reader.feed(data) == b""
        return [value for value in reader.take() if isinstance(value, bytes)]

    def send_rows(self, rows: int) -> None:
        self.connection.sendall(frames.encode(frames.ROWS, rows, answer(rows)))


def answer(rows: int) -> bytes:
    """A block of `rows` arrays, each of the one float 1.0."""
    offsets = b"".join((row + 1).to_bytes(8, "little") for row in range(rows))
    return array_block_header(rows) + offsets + b"\0\0\x80\x3f" * rows


class FakeService:
    """Listens where the worker looks, and runs one script for each connection."""

    def __init__(self, runtime_dir: Path) -> None:
        self.scripts: list[Script] = []
        self.hellos: list[dict[str, object]] = []
        self.faults: list[BaseException] = []
        runtime_dir.mkdir(mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(runtime_dir / "encoder.sock"))
        self._listener.listen(16)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                received = frames.FrameReader()
                greeting = received.feed(connection.recv(65536))
                hello = json.loads(greeting[0][2])
                self.hellos.append(hello)
                connection.sendall(frames.encode(frames.WELCOME))
                try:
                    self.scripts.pop(0)(Peer(connection, hello))
                except ConnectionError:
                    pass
                except BaseException as error:
                    self.faults.append(error)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"runtime_dir": str(tmp_path / "run")}))
    return file


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    service = FakeService(tmp_path / "run")
    yield service
    assert service.faults == []


def start(settings: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from clickhouse_clip.udf.encode_text import main; "
        "sys.exit(main(sys.argv[1], sys.argv[2:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-c", code, str(settings), "encode_text"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(settings: Path, data: bytes) -> tuple[bytes, bytes, int]:
    worker = start(settings)
    answers, messages = worker.communicate(data, timeout=60)
    return answers, messages, worker.returncode


def echo(peer: Peer) -> None:
    """Answer every block, until the worker leaves."""
    while True:
        peer.send_rows(len(peer.read_block()))


def test_rows_are_passed_on_as_they_come(settings: Path, service: FakeService) -> None:
    service.scripts = [echo]
    data = strings(b"one", b"two\0") + strings(b"three")
    assert run(settings, data) == (answer(2) + answer(1), b"", 0)
    assert service.hellos[0]["function"] == "encode_text"


def test_a_large_block_in_both_directions(settings: Path, service: FakeService) -> None:
    service.scripts = [echo]
    data = strings(*[b"x" * 300] * 60_000)
    answers, messages, code = run(settings, data)
    assert (answers, messages, code) == (answer(60_000), b"", 0)


def test_an_error_is_written_with_the_rows_that_are_owed(
    settings: Path, service: FakeService
) -> None:
    def fail_late(peer: Peer) -> None:
        assert peer.read_block() == [b"one", b"two", b"three"]
        peer.send_rows(1)
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"row 2: no"))

    service.scripts = [fail_late, echo]
    data = strings(b"one", b"two", b"three") + strings(b"next")
    assert run(settings, data) == (answer(1) + empty_rows(2) + answer(1), b"row 2: no\n", 0)


def test_an_error_before_the_block_is_read_does_not_spoil_the_next(
    settings: Path, service: FakeService
) -> None:
    def fail_early(peer: Peer) -> None:
        peer.connection.recv(10)
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"early"))

    service.scripts = [fail_early, echo]
    data = strings(*[b"x" * 1000] * 5000) + strings(b"next")
    assert run(settings, data) == (empty_rows(5000) + answer(1), b"early\n", 0)


def test_a_lost_block_is_sent_again_without_the_rows_answered(
    settings: Path, service: FakeService
) -> None:
    def die(peer: Peer) -> None:
        peer.read_block()
        peer.send_rows(1)

    def finish(peer: Peer) -> None:
        assert peer.hello["skip"] == 1
        assert peer.read_block() == [b"one", b"two", b"three"]
        peer.send_rows(2)
        echo(peer)

    service.scripts = [die, finish]
    assert run(settings, strings(b"one", b"two", b"three"))[0] == answer(1) + answer(2)


def test_a_block_lost_twice_fails(settings: Path, service: FakeService) -> None:
    def die(peer: Peer) -> None:
        peer.read_block()

    service.scripts = [die, die, echo]
    answers, messages, _ = run(settings, strings(b"one", b"two") + strings(b"next"))
    assert answers == empty_rows(2) + answer(1)
    assert b"stopped twice" in messages


def test_a_service_that_left_between_blocks_costs_no_try(
    settings: Path, service: FakeService
) -> None:
    def answer_one(peer: Peer) -> None:
        peer.send_rows(len(peer.read_block()))

    service.scripts = [answer_one, answer_one, answer_one]
    worker = start(settings)
    assert worker.stdin is not None
    assert worker.stdout is not None
    for _ in range(3):
        worker.stdin.write(strings(b"x"))
        worker.stdin.flush()
        assert worker.stdout.read(len(answer(1))) == answer(1)
    assert worker.communicate(timeout=30)[1] == b""


def test_a_block_too_large_to_be_kept_fails_when_the_service_dies(
    settings: Path, service: FakeService
) -> None:
    def die_late(peer: Peer) -> None:
        read = 0
        while read < 18 << 20:
            read += len(peer.connection.recv(1 << 20))

    service.scripts = [die_late, echo]
    data = strings(*[b"x" * (1 << 20)] * 20) + strings(b"next")
    answers, messages, _ = run(settings, data)
    assert answers == empty_rows(20) + answer(1)
    assert b"smaller max_block_size" in messages


def test_a_refused_type_is_the_services_to_name(settings: Path, service: FakeService) -> None:
    def refuse(peer: Peer) -> None:
        peer.connection.recv(65536)
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"got UInt64, use toString()"))

    service.scripts = [refuse]
    answers, messages, code = run(settings, block("UInt64", 3, bytes(24)))
    assert (answers, messages, code) == (empty_rows(3), b"got UInt64, use toString()\n", 0)


def test_input_that_is_no_block_ends_the_worker_with_a_message(
    settings: Path, service: FakeService
) -> None:
    service.scripts = [echo]
    answers, messages, code = run(settings, b"this is not a chunk header at all")
    assert answers == b""
    assert b"send_chunk_header" in messages
    assert code == 1


def test_a_service_that_cannot_start_is_the_querys_error(settings: Path) -> None:
    """The settings lack what the service needs, so it cannot start; the worker can go on."""
    answers, messages, code = run(settings, strings(b"one", b"two"))
    assert answers == empty_rows(2)
    assert b"encoder service cannot be started" in messages
    assert b"bundle" in messages
    assert code == 0


def test_missing_settings_are_the_querys_error(tmp_path: Path) -> None:
    answers, messages, _ = run(tmp_path / "none.json", strings(b"one"))
    assert answers == empty_rows(1)
    assert b"install-udfs" in messages


def test_it_leaves_at_the_end_of_input_and_at_sigterm(settings: Path) -> None:
    assert run(settings, b"") == (b"", b"", 0)
    worker = start(settings)
    assert worker.stdin is not None
    worker.stdin.write(b"5\n")
    worker.stdin.flush()
    os.kill(worker.pid, signal.SIGTERM)
    worker.wait(10)
    worker.communicate()
