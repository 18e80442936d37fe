"""Loads LAION's shards with `load_laion.sql`: each wholly or not at all, and none twice.

What is loaded is written in the server: the table's partitions, one a shard, and the journal
`{table}_shards`. This module keeps nothing, so a run that was killed needs only another run.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from clickhouse_clip.sql.statements import read_statements, rename_table
from clickhouse_clip.udf.errors import LoadError

#: Table functions for what a folder's name begins with; any other name is a folder of the server's.
_SOURCES = {"http://": "url", "https://": "url", "s3://": "s3"}

#: An entry in the journal counts only while the table has rows of the shard: somebody may have
#: dropped them, or the whole table.
_LOADED_ROWS = """
SELECT max(rows)
FROM laion_shards
WHERE shard = {shard:UInt32}
    AND (SELECT count() FROM laion WHERE intDiv(id, 10000000) = {shard:Int64}) > 0
"""
_DIMENSIONS = """
SELECT length(array)
FROM file({folder:String} || '/img_emb_' || toString({shard:UInt32}) || '.npy', Npy,
    'array Array(Float32)')
LIMIT 1
"""

#: Which file breaks which constraint of schema.sql.
_CONSTRAINTS = {"image_dimensions": "img_emb_{}.npy", "text_dimensions": "text_emb_{}.npy"}


class Database(Protocol):
    """What loading needs of a connection; both raise `LoadError`."""

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows of a query."""

    def run(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """A statement that answers with nothing."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A shard that is in the table; `before` says that it had been there already."""

    rows: int
    seconds: float
    before: bool


class Loader:
    """Loads shards from `folder`, a path that the server reads or a URL, into `table`."""

    def __init__(self, database: Database, folder: str, table: str) -> None:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", table):
            raise LoadError(f"--table {table}: not a name; the database belongs into the DSN")
        self._database = database
        self._folder = folder.rstrip("/")
        self._table = table
        self._source = next(
            (function for start, function in _SOURCES.items() if folder.startswith(start)), "file"
        )
        self._statements = read_statements("load_laion.sql")

    def check(self) -> None:
        """Raise `LoadError` if shards cannot be loaded into the table as whole partitions."""
        found = self._rows(
            "SELECT partition_key FROM system.tables "
            "WHERE database = currentDatabase() AND name = {table:String}"
        )
        if found and found[0][0] != "intDiv(id, 10000000)":
            raise LoadError(
                f"table {self._table}: it is not partitioned by intDiv(id, 10000000), so a shard "
                "could not replace itself as a whole; name another table, and load-laion makes it"
            )

    def load(self, shard: int) -> Loaded:
        """Load a shard if it is not there; raises `LoadError`, with nothing of it in the table."""
        start = time.perf_counter()
        if rows := self._loaded_rows(shard):
            return Loaded(rows, 0, before=True)
        try:
            self._create_table(shard)
            for statement in self._statements:
                self._run(statement, shard)
        except LoadError as error:
            with contextlib.suppress(LoadError):
                self._run("DROP TABLE IF EXISTS laion_loading SYNC", shard)
            raise _by_file(error, shard) from error
        return Loaded(self._loaded_rows(shard), time.perf_counter() - start, before=False)

    def _loaded_rows(self, shard: int) -> int:
        for table in ("laion", "laion_shards"):
            if not self._rows(f"EXISTS TABLE {table}")[0][0]:
                return 0
        return int(self._rows(_LOADED_ROWS, shard)[0][0])

    def _create_table(self, shard: int) -> None:
        """Make the table if there is none, for vectors as long as this shard's."""
        if self._rows("EXISTS TABLE laion")[0][0]:
            return
        dimensions = self._rows(_DIMENSIONS, shard)
        if not dimensions:
            raise LoadError(f"{self._folder}/img_emb_{shard}.npy: holds no vectors")
        for statement in read_statements("schema.sql"):
            self._run(statement, shard, dimensions=dimensions[0][0])

    def _rows(self, sql: str, shard: int = 0) -> Sequence[Sequence[Any]]:
        return self._database.rows(self._adapted(sql, shard), self._parameters(shard))

    def _run(self, sql: str, shard: int, **more: Any) -> None:
        self._database.run(self._adapted(sql, shard), self._parameters(shard) | more)

    def _adapted(self, sql: str, shard: int) -> str:
        sql = sql.replace("FROM file(", f"FROM {self._source}(")
        return rename_table(sql, self._table, f"{self._table}_loading_{shard}")

    def _parameters(self, shard: int) -> dict[str, Any]:
        return {"folder": self._folder, "shard": shard, "table": self._table}


def _by_file(error: LoadError, shard: int) -> LoadError:
    """A constraint's violation as what it says of a file."""
    for constraint, file in _CONSTRAINTS.items():
        if f"`{constraint}`" in str(error):
            return LoadError(f"{file.format(shard)}: its vectors are not as long as the table's")
    return error
