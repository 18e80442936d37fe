from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.demo.console import Console
from clickhouse_clip.demo.engine import Table
from clickhouse_clip.demo.tour import Found, Subject, Tour, list_pictures, quote
from clickhouse_clip.udf.errors import ClipError


class FakeDatabase:
    """Answers as ClickHouse would if `unreadable` of the pictures in the table were broken."""

    def __init__(self, *, indexed: bool = True, rows: int = 3, unreadable: int = 0) -> None:
        self.statements: list[str] = []
        self.rows, self.unreadable, self.indexed = rows, unreadable, indexed

    def query(self, sql: str) -> Table:
        self.statements.append(sql)
        answers: list[tuple[str, tuple[str, ...], tuple[tuple[Any, ...], ...]]] = [
            ("EXPLAIN", ("explain",), self._plan()),
            ("WHERE empty", ("count()", "any(name)"), ((self.unreadable, "broken.png"),)),
            ("SELECT count()", ("count()",), ((self.rows,),)),
            ("cityHash64", ("name",), (("b.png",), ("a.png",))),
            ("arraySort", ("label", "pictures", "examples"), (("animal", 2, ["a.png", "b.png"]),)),
            ("AS similarity", ("name", "similarity"), (("a.png", 1.0), ("b.png", 0.25))),
        ]
        _, columns, rows = next(answer for answer in answers if answer[0] in sql)
        return Table(columns, rows)

    def command(self, sql: str) -> None:
        self.statements.append(sql)

    def _plan(self) -> tuple[tuple[str], ...]:
        if not self.indexed:
            return (("ReadFromMergeTree (default.pictures)",),)
        return (("│  Skip",), ("│    Name: image_index",), ("│    Description: vector_similarity",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.JPG", "notes.txt", "sub/c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def subject(folder: Path, **changes: Any) -> Subject:
    values: dict[str, Any] = {
        "trusted": False,
        "queries": ("dog", "it's"),
        "examples": (),
        "labels": ("animal", "food"),
        "prompt": "",
    }
    return Subject(folder, **(values | changes))


def run(database: FakeDatabase, about: Subject) -> tuple[list[Found], str]:
    output = io.StringIO()
    found = Tour(database, Console(output, Path("/nowhere")), lambda: 0).run(about, 16)
    return found, output.getvalue()


def test_pictures_are_found_in_all_folders_by_their_ending(folder: Path) -> None:
    assert list_pictures(folder) == ["a.png", "b.JPG", "sub/c.webp"]


def test_every_statement_is_shown_and_run(folder: Path) -> None:
    database = FakeDatabase()
    found, output = run(database, subject(folder))
    assert found == [
        Found("dog", False, (("a.png", 1.0), ("b.png", 0.25))),
        Found("it's", False, (("a.png", 1.0), ("b.png", 0.25))),
        Found("b.png", True, (("a.png", 1.0), ("b.png", 0.25))),
        Found("a.png", True, (("a.png", 1.0), ("b.png", 0.25))),
    ]
    for statement in database.statements:
        # Those about the state of the table are the tour's own business.
        if "encode" in statement or statement.startswith(("CREATE", "ALTER")):
            assert statement.splitlines()[0] in output
    assert "vector_similarity('hnsw', 'cosineDistance', 16)" in output
    assert "encode_text('it\\'s')" in output
    assert "\33" not in output


def test_own_pictures_may_be_unreadable_and_nested(folder: Path) -> None:
    database = FakeDatabase(unreadable=2)
    _, output = run(database, subject(folder))
    (insert,) = [sql for sql in database.statements if sql.startswith("INSERT")]
    assert "encode_image_or_empty(_path)" in insert
    assert "file('pictures/**/*.{JPG,png,webp}', One)" in insert
    assert "ALTER TABLE pictures DELETE WHERE empty(image_embedding)" in output
    assert "2, such as broken.png" in output


def test_the_packages_own_pictures_need_no_such_care(folder: Path) -> None:
    (folder / "sub" / "c.webp").unlink()
    database = FakeDatabase()
    found, output = run(database, subject(folder, trusted=True, examples=("a.png",)))
    assert "SELECT _file AS name, encode_image(_path)" in output
    assert "file('pictures/*.{JPG,png}', One)" in output
    assert "DELETE" not in output
    assert [entry.query for entry in found if entry.by_picture] == ["a.png"]


def test_labels_become_captions(folder: Path) -> None:
    _, output = run(FakeDatabase(), subject(folder, prompt="a photo of "))
    assert "encode_text('a photo of ' || label)" in output


def test_nothing_readable_is_an_error(folder: Path) -> None:
    with pytest.raises(ClipError, match="no picture could be read"):
        run(FakeDatabase(rows=0, unreadable=3), subject(folder))


def test_an_index_that_is_not_used_is_an_error(folder: Path) -> None:
    with pytest.raises(ClipError, match="does not use the vector index"):
        run(FakeDatabase(indexed=False), subject(folder))


def test_quoting() -> None:
    assert quote("it's a \\ dog") == r"'it\'s a \\ dog'"
