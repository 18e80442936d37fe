"""The SQL files of this folder as statements, for drivers that run one at a time.

`clickhouse-client --queries-file` takes the files as they are; here they are read with the same
parameters, and with another name for the table where ClickHouse takes none as a parameter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Strings, quoted names, comments, and the semicolon that ends a statement.
_TOKEN = re.compile(
    r"""'(?:[^'\\]|\\.|'')*' | "(?:[^"\\]|\\.)*" | `(?:[^`\\]|\\.)*` | --[^\n]* | /\*.*?\*/ | ;""",
    re.VERBOSE | re.DOTALL,
)


def read_statements(name: str) -> list[str]:
    """The statements of the file `name`, such as `schema.sql`, without its comments."""
    return split_statements((Path(__file__).parent / name).read_text())


def split_statements(sql: str) -> list[str]:
    """Split at the semicolons that are outside of strings, names and comments; comments go."""
    statements, pieces, start = [], [], 0
    for token in _TOKEN.finditer(sql):
        text = token.group()
        is_comment = text.startswith(("--", "/*"))
        if text != ";" and not is_comment:
            continue
        pieces.append(sql[start : token.start()])
        start = token.end()
        if not is_comment:
            statements.append("".join(pieces).strip())
            pieces = []
    statements.append("".join([*pieces, sql[start:]]).strip())
    return [statement for statement in statements if statement]


def rename_table(sql: str, table: str, loading: str = "laion_loading") -> str:
    """`sql` about `table` instead of `laion`, its shards in `loading` while they are loaded."""
    names = {"laion": table, "laion_shards": f"{table}_shards", "laion_loading": loading}
    return re.sub(r"\blaion(?:_shards|_loading)?\b", lambda name: f"`{names[name.group()]}`", sql)


def used_parameters(sql: str, parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Those of `parameters` that `sql` has a place for: drivers want no others."""
    return {name: value for name, value in parameters.items() if f"{{{name}:" in sql} or None
