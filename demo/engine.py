"""ClickHouse itself, inside this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error

from clickhouse_clip.demo.sandbox import Sandbox
from clickhouse_clip.udf.errors import ClipError


@dataclass(frozen=True, slots=True)
class Table:
    """The result of a query."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


class Engine:
    """The embedded engine on a sandbox's configuration; a process can have one.

    Raises `ClipError` with the engine's message, without its stack trace.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        # A server resolves relative paths in file() by its user files, the embedded engine by the
        # working directory. With them the same, the SQL of the tour runs on both.
        os.chdir(sandbox.user_files)
        try:
            self._client = clickhouse_connect.get_client(
                interface="chdb",
                path=str(sandbox.data_dir),
                chdb_options={"config-file": str(sandbox.config_dir / "config.xml")},
            )
        except Error as error:
            raise _readable(error) from error

    def query(self, sql: str) -> Table:
        """Run a query that answers with rows."""
        try:
            result = self._client.query(sql)
        except Error as error:
            raise _readable(error) from error
        return Table(tuple(result.column_names), tuple(tuple(row) for row in result.result_rows))

    def command(self, sql: str) -> None:
        """Run a statement that answers with nothing."""
        try:
            self._client.command(sql)
        except Error as error:
            raise _readable(error) from error

    def close(self) -> None:
        """Shut the engine down; its workers leave."""
        self._client.close()


def _readable(error: Error) -> ClipError:
    return ClipError(str(error).partition(", Stack trace")[0].strip())
