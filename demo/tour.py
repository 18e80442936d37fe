"""The tour's SQL: fill a table with pictures, index it, search it in three ways.

Runs every statement, shows it with its result and time, and returns what was found. The statements
are plain SQL, made for a server just as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol

from clickhouse_clip.demo.console import Console
from clickhouse_clip.demo.engine import Table
from clickhouse_clip.udf.errors import ClipError

#: Endings of what Pillow reads and people keep; looked for in either case.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})

#: Pictures shown for a query.
FOUND = 7


class Database(Protocol):
    """What the tour needs of an engine."""

    def query(self, sql: str) -> Table:
        """Run a query that answers with rows."""

    def command(self, sql: str) -> None:
        """Run a statement that answers with nothing."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the tour is about: pictures, and what to ask of them.

    `examples` are names of pictures to search by; without any, some are taken as they come.
    `trusted` says that every picture can be read. `prompt` goes before each of `labels`, to make of
    it what a caption says.
    """

    pictures: Path
    trusted: bool
    queries: tuple[str, ...]
    examples: tuple[str, ...]
    labels: tuple[str, ...]
    prompt: str


@dataclass(frozen=True, slots=True)
class Found:
    """One search: `query` is a text, or the name of a picture; names with their similarity."""

    query: str
    by_picture: bool
    pictures: tuple[tuple[str, float], ...]


def list_pictures(folder: Path) -> list[str]:
    """Names of all pictures below `folder`, relative to it, sorted."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


class Tour:
    """Shows and runs the statements; `count_encoded` says how many pictures have been encoded."""

    def __init__(
        self, database: Database, console: Console, count_encoded: Callable[[], int]
    ) -> None:
        self._database = database
        self._console = console
        self._count_encoded = count_encoded

    def run(self, subject: Subject, dimensions: int) -> list[Found]:
        """All of the tour; `dimensions` is the length of the model's embeddings."""
        self._fill(subject)
        self._build_index(dimensions)
        found = [self._search_by_text(text, first=not n) for n, text in enumerate(subject.queries)]
        self._explain(subject.queries[0])
        self._console.heading("Search by picture")
        found += [self._search_by_picture(name) for name in subject.examples or self._some()]
        self._label(subject.labels, subject.prompt)
        return found

    def _fill(self, subject: Subject) -> None:
        names = list_pictures(subject.pictures)
        self._console.heading(f"Fill a table with {len(names):,} pictures")
        self._command(
            "CREATE TABLE pictures (name String, image_embedding Array(Float32))\n"
            "ENGINE = MergeTree ORDER BY name"
        )
        suffixes = sorted({PurePath(name).suffix[1:] for name in names})
        suffix = suffixes[0] if len(suffixes) == 1 else f"{{{','.join(suffixes)}}}"
        nested = any("/" in name for name in names)
        name = "extract(_path, 'user_files/pictures/(.*)')" if nested else "_file"
        encode = "encode_image" if subject.trusted else "encode_image_or_empty"
        # ORDER BY brings all files together before they are encoded: big blocks, one call.
        sql = (
            f"INSERT INTO pictures\nSELECT {name} AS name, {encode}(_path)\n"
            f"FROM file('pictures/{'**/' if nested else ''}*.{suffix}', One) ORDER BY name"
        )
        self._console.statement(sql)
        start = time.perf_counter()
        with self._console.progress(self._count_encoded, len(names)):
            self._database.command(sql)
        seconds = time.perf_counter() - start
        self._console.outcome(f"{len(names) / seconds:,.0f} pictures/s", seconds)
        if not subject.trusted:
            self._drop_unreadable()

    def _drop_unreadable(self) -> None:
        """Pictures that cannot be read have no embedding, and an index takes no such row."""
        count, first = self._database.query(
            "SELECT count(), any(name) FROM pictures WHERE empty(image_embedding)"
        ).rows[0]
        if count:
            self._console.note(f"Not readable as pictures: {count:,}, such as {first}")
            self._command(
                "ALTER TABLE pictures DELETE WHERE empty(image_embedding)\n"
                "SETTINGS mutations_sync = 1"
            )
        if not self._database.query("SELECT count() FROM pictures").rows[0][0]:
            raise ClipError("no picture could be read, so there is nothing to search")

    def _build_index(self, dimensions: int) -> None:
        self._console.heading("Build a vector index")
        self._command(
            "ALTER TABLE pictures ADD INDEX image_index image_embedding\n"
            f"TYPE vector_similarity('hnsw', 'cosineDistance', {dimensions})"
        )
        self._command(
            "ALTER TABLE pictures MATERIALIZE INDEX image_index SETTINGS mutations_sync = 1"
        )

    def _search_by_text(self, text: str, first: bool) -> Found:
        if first:
            self._console.heading("Search by words")
        return self._search(text, f"encode_text({quote(text)})", by_picture=False)

    def _search_by_picture(self, name: str) -> Found:
        return self._search(name, f"encode_image({quote('pictures/' + name)})", by_picture=True)

    def _some(self) -> list[str]:
        table = self._database.query("SELECT name FROM pictures ORDER BY cityHash64(name) LIMIT 3")
        return [name for (name,) in table.rows]

    def _search(self, query: str, embedding: str, *, by_picture: bool) -> Found:
        table = self._query(
            f"WITH {embedding} AS query\n"
            "SELECT name, 1 - cosineDistance(image_embedding, query) AS similarity\n"
            "FROM pictures ORDER BY cosineDistance(image_embedding, query) "
            f"LIMIT {FOUND + by_picture}",
            shown=5,
        )
        return Found(query, by_picture, tuple((name, score) for name, score in table.rows))

    def _explain(self, text: str) -> None:
        self._console.heading("The search above uses the index")
        sql = (
            "EXPLAIN indexes = 1\nSELECT name FROM pictures "
            f"ORDER BY cosineDistance(image_embedding, encode_text({quote(text)})) LIMIT {FOUND}"
        )
        self._console.statement(sql)
        start = time.perf_counter()
        plan = [str(row[0]).strip("│├└─ ") for row in self._database.query(sql).rows]
        seconds = time.perf_counter() - start
        at = next((n for n, line in enumerate(plan) if line == "Name: image_index"), None)
        if at is None:
            raise ClipError("the search does not use the vector index:\n" + "\n".join(plan))
        self._console.text("…\n" + "\n".join(plan[at - 1 : at + 4]))
        self._console.outcome("", seconds)

    def _label(self, labels: Sequence[str], prompt: str) -> None:
        self._console.heading("Sort pictures by labels that the model was never told of")
        caption = f"{quote(prompt)} || label" if prompt else "label"
        self._query(
            f"WITH [{', '.join(map(quote, labels))}] AS labels,\n"
            f"    arrayMap(label -> encode_text({caption}), labels) AS vectors\n"
            "SELECT\n"
            "    arraySort((label, vector) -> cosineDistance(image_embedding, vector),"
            " labels, vectors)[1] AS label,\n"
            "    count() AS pictures,\n"
            "    groupArraySample(4, 1)(name) AS examples\n"
            "FROM pictures GROUP BY label ORDER BY pictures DESC"
        )

    def _query(self, sql: str, shown: int | None = None) -> Table:
        self._console.statement(sql)
        start = time.perf_counter()
        table = self._database.query(sql)
        seconds = time.perf_counter() - start
        self._console.table(table.columns, table.rows[:shown])
        rows = f"{len(table.rows)} rows"
        self._console.outcome(rows if shown is None else f"{shown} of {rows}", seconds)
        return table

    def _command(self, sql: str) -> None:
        self._console.statement(sql)
        start = time.perf_counter()
        self._database.command(sql)
        self._console.outcome("", time.perf_counter() - start)


def quote(text: str) -> str:
    """`text` as an SQL string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
