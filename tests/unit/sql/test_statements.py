from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.sql.statements import (
    read_statements,
    rename_table,
    split_statements,
    used_parameters,
)

SQL = Path(__file__).parents[3] / "sql"


def test_split_at_semicolons_that_end_a_statement() -> None:
    sql = """
    -- a comment; with 'a quote
    SELECT ';', 'it''s; \\'so;', `a;b`, "c;d"; /* two;
    lines */ SELECT 1 -- the last one
    ;;
    SELECT '--', '/*'
    """
    assert split_statements(sql) == [
        """SELECT ';', 'it''s; \\'so;', `a;b`, "c;d\"""",
        "SELECT 1",
        "SELECT '--', '/*'",
    ]


@pytest.mark.parametrize("file", sorted(SQL.rglob("*.sql")), ids=lambda path: str(path.name))
def test_files_split_into_statements_without_comments(file: Path) -> None:
    statements = read_statements(str(file.relative_to(SQL)))
    assert statements
    assert not any("--" in statement for statement in statements)
    starts = {statement.split()[0] for statement in statements}
    known = {"CREATE", "ALTER", "SELECT", "WITH", "INSERT", "DROP", "OPTIMIZE", "TRUNCATE"}
    assert starts <= known


def test_table_gets_another_name_and_nothing_else_does() -> None:
    sql = "INSERT INTO laion_loading SELECT laion.id, laion_x FROM laion, laion_shards, my_laion"
    assert rename_table(sql, "t", "t_loading_7") == (
        "INSERT INTO `t_loading_7` SELECT `t`.id, laion_x FROM `t`, `t_shards`, my_laion"
    )


def test_parameters_that_a_statement_uses() -> None:
    parameters = {"table": "laion", "shard": 0}
    assert used_parameters("DROP TABLE {table:Identifier}", parameters) == {"table": "laion"}
    assert used_parameters("SELECT 1", parameters) is None
