"""pictures.sql: tables that embed themselves, bad pictures in each, and a change of model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.sql.statements import read_statements, used_parameters
from tests import toy
from tests.embedded.conftest import Server, assert_vectors, pixels
from tests.embedded.engine import Engine, QueryError

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="the SQL files are for engines with vector indexes"
)


def run_file(engine: Engine, name: str, **parameters: Any) -> None:
    for statement in read_statements(name):
        sql = statement.replace("512", str(toy.DIM))
        engine.query(sql, **(used_parameters(sql, parameters) or {}))


@pytest.fixture(scope="module")
def tables(engine: Engine, server: Server) -> Engine:
    engine.query("CREATE TABLE captions (id UInt64, caption String) ENGINE = MergeTree ORDER BY id")
    engine.query("INSERT INTO captions SELECT number, 'number ' || number FROM numbers(30)")
    run_file(engine, "pictures.sql", model="toy one")
    good, every = (f"{server.user_files}/{pattern}.png" for pattern in ("{0..19}", "*"))
    insert = "INSERT INTO {} (path) SELECT _path FROM file('{}', One) ORDER BY _path"
    engine.query(insert.format("pictures", good))
    engine.query(insert.format("pictures_inbox", every))
    return engine


def vectors_of(engine: Engine, table: str) -> list[list[Any]]:
    return engine.query(
        "SELECT toUInt32OrZero(extract(path, '(\\\\d+).png')) AS number, image_embedding, model "
        f"FROM {table} ORDER BY number"
    )


def uses_index(engine: Engine, table: str, column: str, index: str) -> bool:
    plan = engine.query(
        f"EXPLAIN indexes = 1 SELECT * FROM {table} "
        f"ORDER BY cosineDistance({column}, encode_text('a dog')) LIMIT 3"
    )
    return any(line.endswith(f"Name: {index}") for (line,) in plan)


def test_inserting_paths_is_all(tables: Engine) -> None:
    rows = vectors_of(tables, "pictures")
    assert [(row[0], row[2]) for row in rows] == [(number, "toy one") for number in range(20)]
    assert_vectors([row[1] for row in rows], [toy.image_vector(pixels(n)) for n in range(20)])
    assert uses_index(tables, "pictures", "image_embedding", "image_index")


def test_bad_picture_fails_the_insert_and_nothing_is_half_there(
    tables: Engine, server: Server
) -> None:
    with pytest.raises(QueryError, match=r"broken\.png': it is no readable"):
        tables.query(
            f"INSERT INTO pictures (path) SELECT _path FROM file('{server.user_files}/*.png', One)"
            " ORDER BY _path"
        )
    assert tables.value("SELECT count() FROM pictures") == 20


def test_bad_picture_passes_the_inbox_and_is_listed(tables: Engine) -> None:
    rows = vectors_of(tables, "pictures_read")
    assert [row[0] for row in rows] == list(range(100))
    assert_vectors([row[1] for row in rows], [toy.image_vector(pixels(n)) for n in range(100)])
    unreadable = tables.query("SELECT path FROM pictures_unreadable")
    assert [Path(path).name for (path,) in unreadable] == ["broken.png"]
    assert uses_index(tables, "pictures_read", "image_embedding", "image_index")


def test_table_that_existed(tables: Engine) -> None:
    tables.query("INSERT INTO captions (id, caption) VALUES (30, 'number 30')")
    rows = tables.query("SELECT text_embedding FROM captions ORDER BY id")
    expected = [toy.text_vector(f"number {number}".encode()) for number in range(31)]
    assert_vectors([row[0] for row in rows], expected)
    assert uses_index(tables, "captions", "text_embedding", "text_index")


def test_change_of_model(tables: Engine, server: Server, tmp_path: Path) -> None:
    before = dict(tables.query("SELECT path, image_embedding FROM pictures"))
    server.install(toy.make_bundle(tmp_path / "other", scale=3, name="other"))
    run_file(tables, "reembed.sql", model="toy two")
    for table in ("pictures", "pictures_read"):
        assert tables.query(f"SELECT DISTINCT model FROM {table}") == [["toy two"]]
        stale = tables.value(
            "SELECT countIf(cosineDistance(image_embedding, encode_image(path)) > 1e-5) "
            f"FROM {table}"
        )
        assert stale == 0
        # The index holds the new vectors: with the old ones a picture would not find itself so.
        path = f"{server.user_files}/7.png"
        found = tables.query(
            f"SELECT path, cosineDistance(image_embedding, encode_image('{path}')) AS distance "
            f"FROM {table} ORDER BY distance LIMIT 1"
        )
        assert found[0][0] == path
        assert found[0][1] < 0.001
    after = dict(tables.query("SELECT path, image_embedding FROM pictures"))
    assert all(before[path] != after[path] for path in before)
    stale = tables.value(
        "SELECT countIf(cosineDistance(text_embedding, encode_text(caption)) > 1e-5) FROM captions"
    )
    assert stale == 0
