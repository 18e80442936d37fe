"""What the machine does: memory and descriptors run out, the clock jumps."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

from clickhouse_clip.udf.errors import ServiceError
from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError
from tests.embedded.services import start_broken
from tests.processes import is_alive
from tests.toy import image_vector, text_vector

pytestmark = pytest.mark.any_engine

UDF = Path(__file__).parents[2] / "udf"

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_{name}, ({limit}, {limit}))
"""

# Each look at the clock is some hours before or after the one before.
JUMPING = """
import random, time
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + random.uniform(-1e5, 1e5)
time.time_ns = lambda: real_ns() + random.randrange(-10**14, 10**14)
"""


def assert_works(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_text('after')"), text_vector(b"after"))
    assert_vectors(engine.value("SELECT encode_image('3.png')"), image_vector(pixels(3)))


@pytest.mark.parametrize("megabytes", [60, 150, 300, 600, 1000])
def test_the_service_has_too_little_memory(server: Server, engine: Engine, megabytes: int) -> None:
    """Wherever it runs out, a query is right or fails, and with memory again all of them work."""
    with contextlib.suppress(ServiceError, AssertionError):  # it may not even start
        start_broken(server, LIMIT.format(name="AS", limit=megabytes << 20))
    for sql, expected in (
        ("SELECT encode_text('memory')", text_vector(b"memory")),
        ("SELECT encode_image('5.png')", image_vector(pixels(5))),
    ):
        with contextlib.suppress(QueryError):
            assert_vectors(engine.value(sql), expected)
    server.stop_encoder()
    assert_works(engine)


def test_the_service_has_too_few_descriptors(server: Server, engine: Engine) -> None:
    start_broken(server, LIMIT.format(name="NOFILE", limit=24))
    answers = [engine.start(f"SELECT encode_text('d{number}')") for number in range(30)]
    failed = 0
    for number, answer in enumerate(answers):
        try:
            assert_vectors(answer.result(120)[0][0], text_vector(b"d%d" % number))
        except QueryError:
            failed += 1
    assert failed < len(answers)
    server.stop_encoder()
    assert_works(engine)


def test_the_clock_jumps(server: Server, engine: Engine) -> None:
    """Nobody leaves, loses patience or is taken for hung because of the wall clock."""
    pid = start_broken(server, JUMPING)
    found = engine.query("SELECT number, encode_text('c' || toString(number)) FROM numbers(20000)")
    assert len(found) == 20_000
    sample = found[::97]
    assert_vectors([v for _, v in sample], [text_vector(b"c%d" % int(n)) for n, _ in sample])
    assert_works(engine)
    assert is_alive(pid)


def test_nothing_is_decided_by_the_wall_clock() -> None:
    """It is asked by `logging` alone; what waits or measures asks a clock that never jumps."""
    for path in UDF.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert {alias.name for alias in node.names} <= {"perf_counter", "monotonic"}
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "time":
                    assert node.attr in ("monotonic", "perf_counter", "sleep"), path
                assert node.value.id not in ("datetime", "date"), path
