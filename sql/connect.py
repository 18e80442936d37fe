"""A connection by clickhouse-connect's DSN, whose errors are `LoadError` in a person's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import clickhouse_connect
from clickhouse_connect.driver.exceptions import Error

from clickhouse_clip.sql.statements import used_parameters
from clickhouse_clip.udf.errors import LoadError

#: A statement may take hours (merging, building an index), during which a server says nothing.
_TIMEOUT_SECONDS = 24 * 3600

#: Where the engine's message ends and its inner life begins.
_END = re.compile(r":? ?[Ww]hile executing|,? Stack trace| \(version |: \(in file/uri")


class Database:
    """A server or the embedded engine. Statements get the parameters that they have places for."""

    def __init__(self, dsn: str, config_file: str | None = None) -> None:
        """Connect; raises `LoadError`. `config_file` is for the embedded engine alone."""
        embedded = dsn.startswith("chdb:")
        if config_file and not embedded:
            raise LoadError(
                "--config-file is for the embedded engine, a DSN that starts with chdb:"
            )
        options: dict[str, Any] = {} if embedded else {"send_receive_timeout": _TIMEOUT_SECONDS}
        if config_file:
            options["chdb_options"] = {"config-file": config_file}
        try:
            self._client = clickhouse_connect.get_client(dsn=dsn, **options)
        except Error as error:
            where = re.sub("//.*@", "//…@", dsn)
            raise LoadError(f"{where}: {_readable(error)}") from error

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows of a query; raises `LoadError`."""
        try:
            return self._client.query(sql, used_parameters(sql, parameters)).result_rows
        except Error as error:
            raise LoadError(_readable(error)) from error

    def run(self, sql: str, parameters: Mapping[str, Any]) -> None:
        """A statement that answers with nothing; raises `LoadError`."""
        try:
            self._client.command(sql, used_parameters(sql, parameters))
        except Error as error:
            raise LoadError(_readable(error)) from error

    def close(self) -> None:
        """Close the connection, or shut the embedded engine down."""
        self._client.close()


def _readable(error: Exception) -> str:
    text = str(error)
    # The file comes last in some messages; it is what one has to know.
    file = re.search(r"\(in file/uri ([^)]+)\)", text)
    reason = _END.split(re.split(r"DB::\w*Exception: ", text, maxsplit=1)[-1])[0].strip(" :\n")
    return f"{file[1]}: {reason}" if file and file[1] not in reason else reason
