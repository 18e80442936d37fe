"""The service, the workers or both are killed, at every stage of their work.

A query whose service dies is answered all the same. A query whose worker dies must fail: nobody is
left who knows what was answered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError
from tests.embedded.services import start_broken
from tests.processes import children_of, is_alive, processes_with, wait_for_end, wait_until
from tests.toy import image_vector, text_vector

ROWS = 10_000  # some windows of texts

DIE = """
import os, signal
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
calls = 0
def after(count, real):
    def replacement(*arguments, **options):
        global calls
        calls += 1
        return die() if calls > count else real(*arguments, **options)
    return replacement
"""

STAGES = {
    "when greeted": """
from clickhouse_clip.udf.service import Service
Service._greet = after(1, Service._greet)  # once for the test itself
""",
    "before a tower is loaded": """
from clickhouse_clip.udf.encoder import Encoder
Encoder.load = die
""",
    "when a tower has been loaded": """
from clickhouse_clip.udf.encoder import Encoder
load = Encoder.load
def load_and_die(*arguments):
    load(*arguments)
    die()
Encoder.load = load_and_die
""",
    "in the first batch": """
from clickhouse_clip.udf.engines.openvino import OpenVinoTower
OpenVinoTower.encode = after(1, OpenVinoTower.encode)  # once for the load
""",
    "in a later batch": """
from clickhouse_clip.udf.engines.openvino import OpenVinoTower
OpenVinoTower.encode = after(8, OpenVinoTower.encode)
""",
    "before the first answer": """
from clickhouse_clip.udf.session import Session
Session._send = die
""",
    "in the middle of an answer": """
from clickhouse_clip.udf.session import Session, _header
sent = 0
def send_half(self, rows, vectors, skipped):
    global sent
    sent += 1
    if sent == 1:
        return send(self, rows, vectors, skipped)
    data = _header(rows, vectors, skipped) + vectors.tobytes()
    self._connection.sendall(data[: len(data) // 2])
    die()
send, Session._send = Session._send, send_half
""",
    "after an answer": """
from clickhouse_clip.udf.session import Session
Session._send = after(1, Session._send)
""",
}


def assert_texts(found: list[list[object]], rows: int = ROWS) -> None:
    """All rows are there, and a sample of them are right."""
    assert sorted(int(str(number)) for number, _ in found) == list(range(rows))
    sample = found[::7]
    assert_vectors(
        [v for _, v in sample], [text_vector(b"s%s" % str(n).encode()) for n, _ in sample]
    )


def texts(rows: int = ROWS) -> str:
    return f"SELECT number, encode_text('s' || toString(number)) FROM numbers({rows})"


def assert_works(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))
    assert_vectors(engine.value("SELECT encode_image('3.png')"), image_vector(pixels(3)))


@pytest.mark.parametrize("stage", STAGES)
def test_the_service_is_killed(server: Server, engine: Engine, stage: str) -> None:
    pid = start_broken(server, DIE + STAGES[stage])
    assert_texts(engine.query(texts()))
    wait_for_end(pid)
    assert_works(engine)


def test_the_service_is_killed_while_pictures_are_decoded(server: Server, engine: Engine) -> None:
    pid = start_broken(
        server,
        DIE
        + "from clickhouse_clip.udf.encoder import Encoder\n"
        + "Encoder._pixels = after(50, Encoder._pixels)\n",
    )
    found = engine.query(
        "SELECT number, encode_image(toString(number) || '.png') FROM numbers(100)"
    )
    assert len(found) == 100
    assert_vectors([v for _, v in found], [image_vector(pixels(int(n))) for n, _ in found])
    wait_for_end(pid)
    assert_works(engine)


@pytest.mark.parametrize("delay", [0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_the_service_is_killed_while_it_starts(
    server: Server, engine: Engine, delay: float
) -> None:
    server.stop_encoder()
    answer = engine.start(texts())
    wait_until(lambda: services(server) or answer.done(), "no service was started")
    time.sleep(delay)
    for pid in services(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert_texts(answer.result(60))
    assert_works(engine)


def test_a_service_that_never_lives_is_the_querys_error(server: Server, engine: Engine) -> None:
    server.stop_encoder()
    answer = engine.start(texts())
    while not answer.done():
        for pid in services(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    with pytest.raises(QueryError, match=r"without a word|stopped twice"):
        answer.result()
    assert_works(engine)


def services(server: Server) -> list[int]:
    found = processes_with("clickhouse_clip.udf.service", str(server.settings_file))
    return [pid for pid in found if is_alive(pid)]


@pytest.mark.parametrize("service_too", [False, True])
def test_workers_are_killed_in_the_middle_of_a_query(
    server: Server, engine: Engine, service_too: bool
) -> None:
    """The query fails, with no row of it lost or doubled in another; later ones are right."""
    assert_works(engine)
    report = server.status()
    assert report is not None
    before = report["rows"].get("encode_text", 0)
    answer = engine.start(texts(300_000) + " SETTINGS max_threads = 2")

    def is_under_way() -> bool:
        report = server.status()
        return report is not None and report["rows"].get("encode_text", 0) > before + 10_000

    wait_until(is_under_way, "the query has not begun")
    workers = children_of(engine.process.pid)
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    if service_too:
        server.kill_encoder()
    with pytest.raises(QueryError):
        answer.result(120)
    # ClickHouse notices a dead worker when it next borrows it: at most one query per worker fails.
    failures = 0
    while True:
        try:
            assert_works(engine)
        except QueryError:
            failures += 1
            assert failures <= len(workers)
        else:
            break
    assert_texts(engine.query(texts()))
