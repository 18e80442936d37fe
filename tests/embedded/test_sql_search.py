"""The searches of search.sql: right by numpy, and answered by the index."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from clickhouse_clip.sql.statements import read_statements
from tests import toy
from tests.embedded.conftest import Server, pixels
from tests.embedded.engine import Engine
from tests.embedded.laion import write_files

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="the SQL files are for engines with vector indexes"
)

ROWS = 1_500
IDS = [*range(ROWS), *range(10_000_000, 10_000_000 + ROWS)]


@dataclass(frozen=True)
class Collection:
    """What was loaded: the rows' vectors, in the order of `IDS`, and the engine that has them."""

    engine: Engine
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    similarity: NDArray[np.float32]

    def nearest(self, vectors: NDArray[np.float32], target: Any, k: int) -> list[int]:
        return [IDS[row] for row in np.argsort(-(vectors @ target), kind="stable")[:k]]


def make_vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pictures 0 to 99, the first ten again with little changes, noise; captions by number."""
    random = np.random.default_rng(3)
    images = random.normal(size=(2 * ROWS, toy.DIM)).astype(np.float32)
    images[:100] = [toy.image_vector(pixels(number)) for number in range(100)]
    images[ROWS : ROWS + 10] = images[:10] + 0.02 * random.normal(size=(10, toy.DIM))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    texts = [toy.text_vector(f"caption {number}".encode()) for number in range(2 * ROWS)]
    return images.astype(np.float16).astype(np.float32), np.array(texts, np.float16).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def collection(server: Server) -> Iterator[Collection]:
    images, texts = make_vectors()
    similarity = (images * texts).sum(1)
    for shard in (0, 1):
        rows = slice(shard * ROWS, (shard + 1) * ROWS)
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        metadata = pa.table(
            {
                "caption": [f"Caption {n} {'ÜBER' if n % 10 == 0 else 'under'}" for n in numbers],
                "NSFW": ["NSFW" if n % 4 == 0 else "UNLIKELY" for n in numbers],
                "similarity": pa.array(similarity[rows], pa.float64()),
                "url": [f"https://example.org/{n}" for n in numbers],
            }
        )
        write_files(server.user_files / "laion", shard, images[rows], texts[rows], metadata)
    load = [
        *(sys.executable, "-m", "clickhouse_clip.sql.load_cli", "--shards", "0,1"),
        *("--from", str(server.user_files / "laion"), "--dsn", f"chdb://{server.data_dir}"),
        *("--config-file", str(server.config_dir / "config.xml")),
    ]
    subprocess.run(load, check=True, timeout=120)
    engine = server.start_engine()
    try:
        build_indexes(engine)
        for statement in read_statements("search.sql"):
            engine.query(statement)
        yield Collection(engine, images, texts, similarity)
    finally:
        engine.close()


def build_indexes(engine: Engine) -> None:
    *statements, progress = read_statements("indexes.sql")
    for statement in statements:
        engine.query(statement.replace("512", str(toy.DIM)), table="laion")
    deadline = time.monotonic() + 120
    while engine.query(progress, table="laion"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


SEARCHES = {
    "search_by_text": ("query = 'a dog', k = 10", "image_index"),
    "search_captions": ("query = 'a dog', k = 10", "text_index"),
    "search_by_image": ("path = '{user_files}/17.png', k = 10", "image_index"),
    "search_by_bytes": ("data = file('{user_files}/17.png'), k = 10", "image_index"),
    "search_filtered": (
        "query = 'a dog', k = 10, nsfw = 'UNLIKELY', words = 'über', min_similarity = 0.1",
        "image_index",
    ),
    "near_duplicates": ("id = 5, min_score = 0.9", "image_index"),
}


@pytest.mark.parametrize("view", SEARCHES)
def test_index_is_used(collection: Collection, server: Server, view: str) -> None:
    arguments, index = SEARCHES[view]
    arguments = arguments.format(user_files=server.user_files)
    plan = collection.engine.query(f"EXPLAIN indexes = 1 SELECT * FROM {view}({arguments})")
    assert [line for (line,) in plan if line.endswith(f"Name: {index}")]


def test_every_search_says_what_it_is(collection: Collection) -> None:
    comments = collection.engine.query(
        "SELECT name, comment FROM system.tables "
        "WHERE database = currentDatabase() AND engine = 'View'"
    )
    assert {name for name, comment in comments if comment.endswith(".")} == {
        *SEARCHES,
        "search_filtered_exact",
    }


def test_one_part_and_one_index_for_each_shard(collection: Collection) -> None:
    parts = collection.engine.query(
        "SELECT partition, rows, secondary_indices_uncompressed_bytes FROM system.parts "
        "WHERE table = 'laion' AND active ORDER BY partition"
    )
    assert [(partition, rows) for partition, rows, _ in parts] == [("0", ROWS), ("1", ROWS)]
    # The formula of indexes.sql, for both indexes.
    expected = 2 * ROWS * (toy.DIM * 2 + 8 * 64 + 18)
    for *_, size in parts:
        assert size == pytest.approx(expected, rel=0.02)


def test_search_by_words(collection: Collection) -> None:
    target = toy.text_vector(b"a dog")
    for view, vectors in (
        ("search_by_text", collection.images),
        ("search_captions", collection.texts),
    ):
        rows = collection.engine.query(
            f"SELECT id, url, score FROM {view}(query = {{words:String}}, k = {{k:UInt32}})",
            words="a dog",
            k=10,
        )
        expected = collection.nearest(vectors, target, 10)
        # bf16 in the index may swap neighbours.
        assert len({row[0] for row in rows} & set(expected)) >= 9
        for id_, url, score in rows:
            row = IDS.index(id_)
            assert url == f"https://example.org/{row}"
            assert score == pytest.approx(vectors[row] @ target, abs=0.02)


def test_search_by_picture(collection: Collection, server: Server) -> None:
    path = server.user_files / "17.png"
    picture = base64.b64encode(path.read_bytes()).decode()
    by_path = collection.engine.query(f"SELECT id FROM search_by_image(path = '{path}', k = 5)")
    by_bytes = collection.engine.query(
        "SELECT id FROM search_by_bytes(data = base64Decode({picture:String}), k = 5)",
        picture=picture,
    )
    assert by_path[0] == [17]
    assert by_bytes == by_path


def test_filters(collection: Collection) -> None:
    target = toy.text_vector(b"a dog")
    passing = [
        row
        for row in range(2 * ROWS)
        if row % 4 and row % 10 == 0 and collection.similarity[row] >= 0.1
    ]
    order = sorted(passing, key=lambda row: -float(collection.images[row] @ target))
    expected = [IDS[row] for row in order[:10]]
    arguments = "query = 'a dog', k = 10, nsfw = 'UNLIKELY', words = 'über', min_similarity = 0.1"
    columns = "id, NSFW, caption, similarity"
    exact = collection.engine.query(
        f"SELECT {columns} FROM search_filtered_exact({arguments}) ORDER BY score DESC"
    )
    assert [row[0] for row in exact] == expected
    quick = collection.engine.query(f"SELECT {columns} FROM search_filtered({arguments})")
    assert 3 <= len(quick) <= 10
    assert {row[0] for row in quick[:3]} <= set(expected)
    for _, nsfw, caption, similarity in exact + quick:
        assert nsfw == "UNLIKELY"
        assert "ÜBER" in caption
        assert similarity >= 0.1
    everything = "query = 'a dog', k = 10, nsfw = '', words = '', min_similarity = -1"
    found = collection.engine.query(f"SELECT id FROM search_filtered_exact({everything})")
    assert [id_ for (id_,) in found] == collection.nearest(collection.images, target, 10)


def test_near_duplicates(collection: Collection) -> None:
    for id_ in (0, 7):
        found = collection.engine.query(
            f"SELECT id, score FROM near_duplicates(id = {id_}, min_score = 0.97)"
        )
        assert [row[0] for row in found] == [10_000_000 + id_]


def test_labels(collection: Collection) -> None:
    labels = ["a cat", "a dog", "a car"]
    rows = collection.engine.query(
        f"SELECT label(image_embedding, {labels}) FROM laion WHERE id < 100 ORDER BY id"
    )
    vectors = np.array([toy.text_vector(f"a photo of {label}".encode()) for label in labels])
    expected = (collection.images[:100] @ vectors.T).argmax(1)
    assert [label for (label,) in rows] == [labels[number] for number in expected]


def test_more_than_the_index_gives_is_exact(collection: Collection) -> None:
    plan = collection.engine.query(
        "EXPLAIN indexes = 1 SELECT * FROM search_by_text(query = 'a dog', k = 1001)"
    )
    assert not [line for (line,) in plan if "image_index" in line]
