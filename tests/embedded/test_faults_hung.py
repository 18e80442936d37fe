"""The service hangs: in the encoder, in a decoder, in a load, or as a whole.

What waits for a task that hangs fails with a message; everything else is answered by the next
service. A service that hangs as a whole has done nothing to any query, so none fails.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError
from tests.embedded.services import start_broken
from tests.processes import is_alive, state_of, wait_for_end, wait_until
from tests.toy import image_vector, text_vector

pytestmark = pytest.mark.any_engine

IMPATIENT = "from clickhouse_clip.udf import watchdog\nwatchdog.HANG_SECONDS = 6\n"

HANG_IN_THE_ENCODER = """
import time
from clickhouse_clip.udf.engines.openvino import OpenVinoTower
encode = OpenVinoTower.encode
calls = 0
def hang(self, batch):
    global calls
    if batch.ndim == 2:  # of the text tower: its load, a batch, and one more
        calls += 1
        if calls == 3:
            time.sleep(3600)
    return encode(self, batch)
OpenVinoTower.encode = hang
"""

HANG_IN_A_DECODER = """
import time
from clickhouse_clip.udf.encoder import Encoder
pixels = Encoder._pixels
def hang(self, function, row):
    if row == b"7.png":
        time.sleep(3600)
    return pixels(self, function, row)
Encoder._pixels = hang
"""

HANG_IN_A_LOAD = """
import time
from clickhouse_clip.udf.encoder import Encoder
Encoder.load = lambda *_: time.sleep(3600)
"""


def assert_works(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))
    assert_vectors(engine.value("SELECT encode_image('7.png')"), image_vector(pixels(7)))


def test_the_encoder_hangs(server: Server, engine: Engine) -> None:
    pid = start_broken(server, IMPATIENT + HANG_IN_THE_ENCODER)
    assert_vectors(engine.value("SELECT encode_text('first')"), text_vector(b"first"))
    hung = engine.start("SELECT encode_text('second')")
    behind = [engine.start(f"SELECT encode_image('{number}.png')") for number in range(9)]
    with pytest.raises(QueryError, match="encoding a batch of the text tower for more than 6 s"):
        hung.result(60)
    for number, answer in enumerate(behind):
        assert_vectors(answer.result(60)[0][0], image_vector(pixels(number)))
    wait_for_end(pid)
    assert "in hang" in server.settings.log_file.read_text()
    assert_works(engine)


def test_a_decoder_hangs(server: Server, engine: Engine) -> None:
    pid = start_broken(server, IMPATIENT + HANG_IN_A_DECODER)
    answers = [engine.start(f"SELECT encode_image('{number}.png')") for number in range(12)]
    for number, answer in enumerate(answers):
        if number == 7:
            with pytest.raises(QueryError, match="decoding a picture for more than 6 s"):
                answer.result(60)
        else:
            assert_vectors(answer.result(60)[0][0], image_vector(pixels(number)))
    wait_for_end(pid)
    assert_works(engine)


def test_a_load_hangs(server: Server, engine: Engine) -> None:
    pid = start_broken(server, IMPATIENT + HANG_IN_A_LOAD)
    with pytest.raises(QueryError, match="loading the text tower for more than 6 s"):
        engine.query("SELECT encode_text('x')")
    wait_for_end(pid)
    assert_works(engine)


def test_the_service_accepts_and_does_not_answer(server: Server, engine: Engine) -> None:
    """Stopped, it still has connections; a new worker ends it, and all get their answers."""
    assert_works(engine)
    report = server.status()
    assert report is not None
    pid = int(report["pid"])
    os.kill(pid, signal.SIGSTOP)
    known = engine.start("SELECT encode_text('known')")
    new = engine.start("SELECT length(encode_image_or_empty('none.png'))")
    assert_vectors(known.result(120)[0][0], text_vector(b"known"))
    assert new.result(120) == [[0]]
    assert not is_alive(pid)
    assert f"killed process {pid}" in server.settings.log_file.read_text()
    assert_works(engine)


def test_a_service_that_goes_on_after_a_pause_is_left_alone(server: Server, engine: Engine) -> None:
    """As when a container is frozen for a while."""
    assert_works(engine)
    report = server.status()
    assert report is not None
    pid, before = int(report["pid"]), report["rows"]["encode_text"]
    answer = engine.start(
        "SELECT number, encode_text('p' || toString(number)) FROM numbers(100000)"
    )

    def is_under_way() -> bool:
        report = server.status()
        return report is not None and report["rows"]["encode_text"] > before + 1000

    wait_until(is_under_way, "the query has not begun")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T", "it does not stop")
    os.kill(pid, signal.SIGCONT)
    found = answer.result(60)
    assert len(found) == 100_000
    sample = found[::99]
    assert_vectors([v for _, v in sample], [text_vector(b"p%d" % int(n)) for n, _ in sample])
    assert is_alive(pid)
