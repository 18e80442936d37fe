"""The server is stopped, started and killed. One engine at a time may run on a data folder."""

from __future__ import annotations

import os
import signal

import pytest

from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError
from tests.processes import children_of, wait_for_end
from tests.toy import image_vector, text_vector


def assert_works(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))
    assert_vectors(engine.value("SELECT encode_image('3.png')"), image_vector(pixels(3)))


def test_the_server_is_stopped_started_and_killed(server: Server) -> None:
    """Its workers go with it; the service waits for the next server."""
    first = server.start_engine()
    try:
        assert_works(first)
        report = server.status()
        workers = children_of(first.process.pid)
        assert workers
    finally:
        first.close()
    for worker in workers:
        wait_for_end(worker)
    second = server.start_engine()
    try:
        assert_works(second)
        assert server.status()["pid"] == report["pid"]  # type: ignore[index]
        answer = second.start("SELECT encode_text(toString(number)) FROM numbers(400000)")
        workers = children_of(second.process.pid)
        os.kill(second.process.pid, signal.SIGKILL)
        with pytest.raises(QueryError, match="the engine has gone"):
            answer.result(60)
    finally:
        second.close()
    for worker in workers:
        wait_for_end(worker)
    third = server.start_engine()
    try:
        assert_works(third)
    finally:
        third.close()
