"""What happens to queries when a part of the chain breaks."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toy
from tests.embedded.conftest import Server, assert_vectors
from tests.embedded.engine import Engine, QueryError
from tests.processes import children_of, wait_for_end
from tests.toy import text_vector

LONG_ROWS = 400_000
LONG_QUERY = (
    f"SELECT number, encode_text('w' || toString(number)) FROM numbers({LONG_ROWS}) "
    "SETTINGS max_threads = 2"
)


def assert_works(engine: Engine, word: str = "after") -> None:
    assert_vectors(engine.value(f"SELECT encode_text('{word}')"), text_vector(word.encode()))


@pytest.fixture
def fresh(engine: Engine) -> Iterator[Engine]:
    """The engine, with a service that has just answered."""
    assert_works(engine, "before")
    yield engine
    assert_works(engine)


def test_the_service_is_killed_in_the_middle_of_a_long_query(server: Server, fresh: Engine) -> None:
    answer = fresh.start(LONG_QUERY)
    killed = set()
    while not answer.done():
        time.sleep(0.3)
        status = server.status()
        if status is not None and status["rows"].get("encode_text", 0) > 20_000 and not killed:
            killed.add(server.kill_encoder())
    assert killed
    found = answer.result()
    assert sorted(int(number) for number, _ in found) == list(range(LONG_ROWS))
    sample = found[::101]
    assert_vectors([v for _, v in sample], [text_vector(b"w%d" % int(n)) for n, _ in sample])


def test_the_service_is_killed_between_queries(server: Server, fresh: Engine) -> None:
    wait_for_end(server.kill_encoder())
    assert_works(fresh, "again")


def test_the_service_is_stopped_in_the_middle_of_a_long_query(
    server: Server, fresh: Engine
) -> None:
    answer = fresh.start(LONG_QUERY)
    time.sleep(0.5)
    server.stop_encoder()
    assert len(answer.result(120)) == LONG_ROWS


def test_workers_are_killed_between_queries(fresh: Engine) -> None:
    for worker in children_of(fresh.process.pid):
        os.kill(worker, signal.SIGKILL)
    # ClickHouse notices a dead worker when it next borrows it: at most one query per worker fails.
    for _ in range(40):
        try:
            assert_works(fresh)
        except QueryError:
            continue
        return
    pytest.fail("no query worked after the workers were killed")


def test_the_socket_is_removed(server: Server, fresh: Engine) -> None:
    """A service that cannot be reached any more must not go on serving those who still are."""
    status = server.status()
    assert status is not None
    (server.settings.runtime_dir / "encoder.sock").unlink()
    assert_works(fresh, "socket")
    wait_for_end(status["pid"])


def test_a_missing_bundle_is_the_querys_error(server: Server, fresh: Engine) -> None:
    bundle = server.settings.bundle
    server.stop_encoder()
    hidden = bundle.with_name("hidden")
    bundle.rename(hidden)
    try:
        with pytest.raises(QueryError, match=r"no model bundle.*clip-bundle export"):
            fresh.query("SELECT encode_text('x')")
    finally:
        hidden.rename(bundle)
    assert_works(fresh)


def test_a_damaged_bundle_is_the_querys_error(server: Server, fresh: Engine) -> None:
    server.stop_encoder()
    file = server.settings.bundle / "text.bin"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(QueryError, match=r"text\.bin: its SHA-256"):
            fresh.query("SELECT encode_text('x')")
    finally:
        file.write_bytes(content)
    assert_works(fresh)


def test_a_failing_querys_neighbours_get_their_own_answers(fresh: Engine) -> None:
    answers = {}
    for number in range(60):
        if number % 3:
            sql = f"SELECT encode_text('n{number}')"
        else:
            sql = "SELECT encode_image('broken.png')"
        answers[number] = fresh.start(sql)
    for number, answer in answers.items():
        if number % 3:
            assert_vectors(answer.result(60)[0][0], text_vector(b"n%d" % number))
        else:
            with pytest.raises(QueryError, match=r"'broken\.png'"):
                answer.result(60)


def test_another_model_is_served_after_install(
    server: Server, fresh: Engine, tmp_path: Path
) -> None:
    """The running workers stay; the service gives way, and no cache remembers."""
    other = toy.make_bundle(tmp_path / "other", scale=5.0, name="other")
    before = fresh.value("SELECT encode_text('model')")
    old = server.settings.bundle
    serving = server.status()
    assert serving is not None
    server.install(other, "--precision", "fp32")
    try:
        wait_for_end(serving["pid"])
        after = fresh.value("SELECT encode_text('model')")
        status = server.status()
        assert status is not None
        assert status["model"] == "other"
        assert abs(after[0]) > abs(before[0])
    finally:
        server.install(old, "--precision", "fp32")
        server.stop_encoder()
    assert fresh.value("SELECT encode_text('model')") == before


def test_a_hundred_queries_at_once_start_one_service(server: Server, fresh: Engine) -> None:
    server.stop_encoder()
    log = server.settings.log_file
    before = log.read_text().count("listens")
    answers = [fresh.start(f"SELECT encode_text('s{number}')") for number in range(100)]
    for number, answer in enumerate(answers):
        assert_vectors(answer.result(120)[0][0], text_vector(b"s%d" % number))
    assert log.read_text().count("listens") == before + 1


def test_the_runtime_folder_is_the_owners_alone(server: Server, fresh: Engine) -> None:
    runtime = server.settings.runtime_dir
    assert runtime.stat().st_mode & 0o777 == 0o700
    server.stop_encoder()
    runtime.chmod(0o755)
    try:
        with pytest.raises(QueryError, match="mode 0700"):
            fresh.query("SELECT encode_text('x')")
    finally:
        shutil.rmtree(runtime)
    assert_works(fresh)
