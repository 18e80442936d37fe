"""The functions that encode pictures, through SQL."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.embedded.conftest import (
    Server,
    assert_vectors,
    pixels,
    save_picture,
    skip_without_vector_index,
)
from tests.embedded.engine import Engine, QueryError
from tests.toy import image_vector

PATHS = "arrayJoin(arrayMap(n -> toString(n) || '.png', range(100)))"


def test_a_path_relative_to_user_files(engine: Engine) -> None:
    assert_vectors(engine.value("SELECT encode_image('7.png')"), image_vector(pixels(7)))


def test_an_absolute_path(engine: Engine, server: Server) -> None:
    path = server.user_files / "8.png"
    assert_vectors(engine.value(f"SELECT encode_image('{path}')"), image_vector(pixels(8)))


def test_bytes(engine: Engine, server: Server) -> None:
    found = engine.query(
        "SELECT _file, encode_image_bytes(content) FROM "
        f"(SELECT _file, raw AS content "
        f"FROM file('{server.user_files}/?.png', 'RawBLOB', 'raw String'))"
    )
    assert sorted(row[0] for row in found) == [f"{number}.png" for number in range(10)]
    assert_vectors(
        [row[1] for row in found], [image_vector(pixels(int(row[0][:-4]))) for row in found]
    )


@pytest.mark.parametrize(
    ("function", "encode"),
    [("base64Decode", base64.b64encode), ("unhex", bytes.hex)],
)
def test_bytes_out_of_a_text(
    engine: Engine, server: Server, function: str, encode: Callable[[bytes], bytes | str]
) -> None:
    if not engine.value(f"SELECT count() FROM system.functions WHERE name = '{function}'"):
        pytest.skip(f"this build of the engine has no {function}")
    encoded = encode((server.user_files / "3.png").read_bytes())
    data = encoded if isinstance(encoded, str) else encoded.decode()
    found = engine.value(f"SELECT encode_image_bytes({function}('{data}'))")
    assert_vectors(found, image_vector(pixels(3)))


@pytest.mark.parametrize("rows", [1, 33, 20_000])
def test_every_row_has_its_own_vector(engine: Engine, rows: int) -> None:
    found = engine.query(
        f"SELECT number % 100, encode_image(toString(number % 100) || '.png') FROM numbers({rows})"
    )
    assert len(found) == rows
    sample = found[:: max(1, rows // 1000)]
    assert_vectors(
        [vector for _, vector in sample],
        [image_vector(pixels(int(number))) for number, _ in sample],
    )


def test_all_functions_agree(engine: Engine, server: Server) -> None:
    found = engine.query(
        "SELECT encode_image(_file), encode_image_or_empty(_file), encode_image_bytes(raw), "
        "encode_image_bytes_or_empty(raw) "
        f"FROM file('{server.user_files}/5?.png', 'RawBLOB', 'raw String')"
    )
    assert len(found) == 10
    for row in found:
        assert row[0] == row[1] == row[2] == row[3]


def test_a_bad_picture_fails_the_query_and_names_row_path_and_reason(engine: Engine) -> None:
    with pytest.raises(QueryError) as error:
        engine.query(f"SELECT encode_image(if({PATHS} = '41.png', 'broken.png', '1.png'))")
    assert "encode_image: row 42 of 100, 'broken.png': " in str(error.value)
    assert_vectors(engine.value("SELECT encode_image('9.png')"), image_vector(pixels(9)))


def test_bad_bytes_fail_the_query_and_name_the_row(engine: Engine, server: Server) -> None:
    with pytest.raises(QueryError, match="encode_image_bytes: row 2 of 3: "):
        engine.query(
            "SELECT encode_image_bytes(arrayJoin([raw, 'no picture', raw])) "
            f"FROM file('{server.user_files}/1.png', 'RawBLOB', 'raw String')"
        )


def test_a_missing_file_is_named(engine: Engine) -> None:
    with pytest.raises(QueryError, match=r"row 1 of 1, 'none\.png': no such file"):
        engine.query("SELECT encode_image('none.png')")


def test_or_empty_goes_on_and_counts(engine: Engine, server: Server) -> None:
    before = server.status()
    found = engine.query(
        "SELECT encode_image_or_empty(arrayJoin("
        "['1.png', 'broken.png', 'none.png', '2.png', ''])), "
        "encode_image_bytes_or_empty('nothing')"
    )
    after = server.status()
    assert [len(row[0]) for row in found] == [16, 0, 0, 16, 0]
    assert all(row[1] == [] for row in found)
    assert_vectors(found[3][0], image_vector(pixels(2)))
    assert before is not None
    assert after is not None
    assert after["bad_pictures"] - before["bad_pictures"] >= 4
    assert "'broken.png'" in server.settings.log_file.read_text()


def test_outside_of_the_allowed_folders(engine: Engine, server: Server, tmp_path: Path) -> None:
    save_picture(tmp_path / "there.png", 1)
    (server.user_files / "link.png").symlink_to(tmp_path / "there.png")
    (server.user_files / "inside.png").symlink_to("4.png")
    errors = []
    for path in (
        tmp_path / "there.png",
        tmp_path / "missing.png",
        "../config/config.xml",
        "link.png",
    ):
        with pytest.raises(QueryError, match="--image-root") as error:
            engine.query(f"SELECT encode_image('{path}')")
        errors.append(str(error.value).replace(str(path), "PATH").partition("While")[0])
    assert errors[0] == errors[1]
    assert_vectors(engine.value("SELECT encode_image('inside.png')"), image_vector(pixels(4)))


def test_an_index_finds_by_text_and_by_picture(engine: Engine) -> None:
    skip_without_vector_index(engine)
    engine.query("DROP TABLE IF EXISTS pictures")
    engine.query(
        "CREATE TABLE pictures (name String, v Array(Float32), "
        "INDEX v_index v TYPE vector_similarity('hnsw', 'cosineDistance', 16)) "
        "ENGINE = MergeTree ORDER BY name"
    )
    engine.query(f"INSERT INTO pictures SELECT {PATHS} AS name, encode_image(name)")
    for query in ("encode_text('dog')", "encode_image('77.png')"):
        for sql in (
            f"SELECT name FROM pictures ORDER BY cosineDistance(v, {query}) LIMIT 5",
            f"WITH {query} AS q SELECT name FROM pictures ORDER BY cosineDistance(v, q) LIMIT 5",
        ):
            plan = "\n".join(row[0] for row in engine.query(f"EXPLAIN indexes = 1 {sql}"))
            assert "v_index" in plan
            assert "vector_similarity" in plan
    nearest = engine.value(
        "SELECT name FROM pictures ORDER BY cosineDistance(v, encode_image('77.png')) LIMIT 1"
    )
    assert nearest == "77.png"
