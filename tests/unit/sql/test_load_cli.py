from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from clickhouse_clip.sql import load_cli
from clickhouse_clip.sql.loader import Loader
from clickhouse_clip.udf.errors import LoadError


class Server:
    """Answers like a server with an empty table; shard 2's files are damaged."""

    def __init__(self, *_: str | None) -> None:
        self.loaded: set[int] = set()
        self.statements: list[str] = []

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        if sql.startswith("EXISTS"):
            return [[1]]
        return [[500 if parameters["shard"] in self.loaded else 0]] if "max(rows)" in sql else []

    def run(self, sql: str, parameters: Mapping[str, Any]) -> None:
        self.statements.append(sql)
        if sql.startswith("INSERT") and parameters["shard"] == 2:
            raise LoadError("img_emb_2.npy: it is too short")
        if "REPLACE PARTITION" in sql:
            self.loaded.add(parameters["shard"])

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_cli, "Database", Server)


def test_failed_shards_are_in_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_cli.main(["--shards", "1-3,2", "--from", "laion"]) == 1
    said, errors = capsys.readouterr()
    assert "shard 1: 500 rows in 0.0 s; 1 of 3, 500 rows in all" in said
    assert "shard 3: 500 rows in 0.0 s; 3 of 3, 1,000 rows in all" in said
    assert errors.splitlines() == [
        "load-laion: shard 2: img_emb_2.npy: it is too short",
        "load-laion: 1 of 3 shards failed: 2; run it again to load what is missing",
    ]


@pytest.mark.parametrize("shards", ["", "3-1", "a", "1,", "-1", "1.5"])
def test_shards_that_are_none(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_cli.main([f"--shards={shards}", "--from", "laion"])
    assert "not numbers and ranges such as 0-2,7" in capsys.readouterr().err


def test_a_table_with_a_database_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_cli.main(["--shards", "0", "--from", "laion", "--table", "db.laion"]) == 1
    assert "--table db.laion: not a name; the database belongs into the DSN" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("folder", "function"),
    [("laion", "file"), ("/data/laion/", "file"), ("https://x.org/a", "url"), ("s3://b/c", "s3")],
)
def test_where_files_are_read_from(folder: str, function: str) -> None:
    server = Server("", None)
    Loader(server, folder, "laion").load(1)
    insert = next(statement for statement in server.statements if "PASTE JOIN" in statement)
    assert insert.count(f"FROM {function}(") == 3
