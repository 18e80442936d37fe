"""The worker against a scripted service: what it writes to stdout and stderr, to the byte."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.native import BlockReader, array_block_header
from tests.unit.udf.test_native import block, empty, strings

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
                received = frames.FrameReader((frames.HELLO,))
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


def start(settings: Path, patch: str = "") -> subprocess.Popen[bytes]:
    code = patch + (
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


def echo_rest(peer: Peer) -> None:
    """Answer the first block from the row on that the worker asks for."""
    skip = peer.hello["skip"]
    assert isinstance(skip, int)
    peer.send_rows(len(peer.read_block()) - skip)
    echo(peer)


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
    assert run(settings, data) == (answer(1) + empty(2) + answer(1), b"row 2: no\n", 0)


def test_an_error_before_the_block_is_read_does_not_spoil_the_next(
    settings: Path, service: FakeService
) -> None:
    def fail_early(peer: Peer) -> None:
        peer.connection.recv(10)
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"early"))

    service.scripts = [fail_early, echo]
    data = strings(*[b"x" * 1000] * 5000) + strings(b"next")
    assert run(settings, data) == (empty(5000) + answer(1), b"early\n", 0)


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
    assert answers == empty(2) + answer(1)
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
    assert answers == empty(20) + answer(1)
    assert b"smaller max_block_size" in messages


def test_a_refused_type_is_the_services_to_name(settings: Path, service: FakeService) -> None:
    def refuse(peer: Peer) -> None:
        peer.connection.recv(65536)
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"got UInt64, use toString()"))

    service.scripts = [refuse]
    answers, messages, code = run(settings, block("UInt64", 3, bytes(24)))
    assert (answers, messages, code) == (empty(3), b"got UInt64, use toString()\n", 0)


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
    assert answers == empty(2)
    assert b"encoder service cannot be started" in messages
    assert b"bundle" in messages
    assert code == 0


def test_frames_behind_the_last_row_are_not_about_this_block(
    settings: Path, service: FakeService
) -> None:
    """A service that gives way may say so at once: the next block begins with its first row."""

    def answer_and_retire(peer: Peer) -> None:
        rows = len(peer.read_block())
        retired = frames.encode(frames.RETIRED)
        peer.connection.sendall(frames.encode(frames.ROWS, rows, answer(rows)) + retired)

    service.scripts = [answer_and_retire] * 20
    for _ in range(10):
        worker = start(settings)
        assert worker.stdin is not None
        assert worker.stdout is not None
        for _ in range(2):
            worker.stdin.write(strings(b"one", b"two"))
            worker.stdin.flush()
            assert worker.stdout.read(len(answer(2))) == answer(2)
        assert worker.communicate(timeout=30)[1] == b""
    assert [hello["skip"] for hello in service.hellos] == [0] * 20


def test_a_service_that_gives_way_costs_no_try(settings: Path, service: FakeService) -> None:
    def retire(peer: Peer) -> None:
        peer.read_block()
        peer.send_rows(1)
        peer.connection.sendall(frames.encode(frames.RETIRED))

    service.scripts = [retire, retire, retire, echo_rest]
    data = strings(*[b"x"] * 5) + strings(b"next")
    answers = answer(1) * 3 + answer(2) + answer(1)
    assert run(settings, data) == (answers, b"", 0)
    assert [hello["skip"] for hello in service.hellos] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "frame",
    [
        b"\x04" + b"\xff" * 12,  # a payload of 2**64 bytes
        frames.HEADER.pack(frames.ROWS, 2, 1 << 40),
        frames.encode(99, 0, b"?"),
        frames.encode(frames.HELLO, 0, b"{}"),
        frames.encode(frames.ROWS, 0, answer(0)),
        frames.encode(frames.ROWS, 3, answer(3)),
        frames.encode(frames.ROWS, 2, answer(1)),
        frames.encode(frames.ROWS, 2, answer(2) + b"\0"),
        frames.encode(frames.ROWS, 2, answer(2)[:-1]),
        frames.encode(frames.ROWS, 2, b"no block at all"),
        frames.encode(frames.ROWS, 2, b""),
        b"\xff" * 5000,
    ],
)
def test_a_service_that_breaks_the_protocol_is_the_querys_error(
    settings: Path, service: FakeService, frame: bytes
) -> None:
    """Not a byte of it reaches ClickHouse, and the next block is answered."""

    def break_it(peer: Peer) -> None:
        peer.read_block()
        peer.connection.sendall(frame)

    service.scripts = [break_it, echo]
    answers, messages, code = run(settings, strings(b"one", b"two") + strings(b"next"))
    assert answers == empty(2) + answer(1)
    assert b"broke the protocol" in messages
    assert code == 0


def test_an_error_that_is_no_text_is_shown_all_the_same(
    settings: Path, service: FakeService
) -> None:
    def fail(peer: Peer) -> None:
        peer.read_block()
        peer.connection.sendall(frames.encode(frames.ERROR, 0, b"\xff\xfe no"))

    service.scripts = [fail]
    answers, messages, _ = run(settings, strings(b"one"))
    assert answers == empty(1)
    assert b" no\n" in messages


def test_silence_is_not_taken_for_work_and_work_not_for_silence(
    settings: Path, service: FakeService
) -> None:
    """The service says that it is alive for longer than silence may last, then nothing.

    It is this test's own process that the worker then kills: another stands in for it.
    """
    said = []

    def live_and_hang(peer: Peer) -> None:
        peer.read_block()
        for _ in range(12):
            time.sleep(0.1)
            peer.connection.sendall(frames.encode(frames.ALIVE))
        said.append(time.monotonic())
        assert peer.connection.recv(1) == b""

    service.scripts = [live_and_hang, echo]
    # Six polls of 0.1 s; instead of a kill, a note that there would have been one.
    worker = start(
        settings,
        "from clickhouse_clip.udf import frames, worker; frames.ALIVE_SECONDS = 0.1; "
        "worker.end_hung = lambda service: None; ",
    )
    answers, messages = worker.communicate(strings(b"one"), timeout=60)
    assert (answers, messages) == (answer(1), b"")
    assert len(said) == 1


def test_no_row_for_too_long_is_an_error_before_clickhouse_gives_up(
    settings: Path, service: FakeService
) -> None:
    def dawdle(peer: Peer) -> None:
        peer.read_block()
        peer.send_rows(1)
        while True:
            time.sleep(0.05)
            peer.connection.sendall(frames.encode(frames.ALIVE))

    service.scripts = [dawdle, echo]
    worker = start(settings, "from clickhouse_clip.udf import worker; worker._ROW_SECONDS = 0.5; ")
    answers, messages = worker.communicate(strings(b"one", b"two") + strings(b"x"), timeout=60)
    assert answers == answer(1) + empty(1) + answer(1)
    assert b"gave no row for" in messages


def test_missing_settings_are_the_querys_error(tmp_path: Path) -> None:
    answers, messages, _ = run(tmp_path / "none.json", strings(b"one"))
    assert answers == empty(1)
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
