"""The SQL functions: the single source for the XML, for verification and for the documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What every function returns is a fact of the blocks that workers write.
from clickhouse_clip.udf.native import RETURN_NAME, RETURN_TYPE

__all__ = ["BY_NAME", "FUNCTIONS", "RETURN_NAME", "RETURN_TYPE", "SqlFunction"]


@dataclass(frozen=True, slots=True)
class SqlFunction:
    """One SQL function.

    `source` says what a row holds: `text`, a picture's `path`, or a picture's `bytes`.
    `skips_bad_rows` says whether a picture that cannot be read gives `[]` or fails the query.
    """

    name: str
    argument: str
    script: str
    source: Literal["text", "path", "bytes"]
    skips_bad_rows: bool
    summary: str

    @property
    def tower(self) -> Literal["text", "image"]:
        """The model's tower that encodes this function's rows."""
        return "text" if self.source == "text" else "image"


FUNCTIONS: tuple[SqlFunction, ...] = (
    SqlFunction(
        "encode_text",
        "text",
        "encode_text.py",
        "text",
        False,
        "The embedding of a text.",
    ),
    SqlFunction(
        "encode_image",
        "path",
        "encode_image.py",
        "path",
        False,
        "The embedding of the picture at a path below the server's user files.",
    ),
    SqlFunction(
        "encode_image_bytes",
        "data",
        "encode_image.py",
        "bytes",
        False,
        "The embedding of a picture given as its file's bytes.",
    ),
    SqlFunction(
        "encode_image_or_empty",
        "path",
        "encode_image.py",
        "path",
        True,
        "Like encode_image, but [] for a picture that cannot be read.",
    ),
    SqlFunction(
        "encode_image_bytes_or_empty",
        "data",
        "encode_image.py",
        "bytes",
        True,
        "Like encode_image_bytes, but [] for bytes that are no readable picture.",
    ),
)

BY_NAME: dict[str, SqlFunction] = {function.name: function for function in FUNCTIONS}
