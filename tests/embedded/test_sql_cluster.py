"""The cluster's SQL, as far as one engine goes: it parses, and is that of one server."""

from __future__ import annotations

import os
import re

import pytest

from clickhouse_clip.sql.statements import read_statements
from tests.embedded.engine import Engine

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="the SQL files are for engines with vector indexes"
)


@pytest.mark.parametrize("file", ["schema", "indexes"])
def test_parses(engine: Engine, file: str) -> None:
    for statement in read_statements(f"cluster/{file}.sql"):
        assert engine.query(f"EXPLAIN AST {statement}", dimensions=512)


def columns(sql: str) -> str:
    return re.sub(r"\s+", " ", sql[sql.index("(") : sql.index("ENGINE")])


def test_tables_are_those_of_one_server() -> None:
    """Columns, constraints, partitions and order cannot part from those of schema.sql."""
    [single] = read_statements("schema.sql")
    local, _ = read_statements("cluster/schema.sql")
    assert columns(local) == columns(single)
    assert local.partition("PARTITION BY")[2] == single.partition("PARTITION BY")[2]


def test_indexes_are_those_of_one_server() -> None:
    def indexes(file: str) -> list[str]:
        return re.findall(r"TYPE vector_similarity\(.*\)", "\n".join(read_statements(file)))

    assert indexes("cluster/indexes.sql") == indexes("indexes.sql")
