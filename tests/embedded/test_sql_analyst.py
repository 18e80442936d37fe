"""docs/analyst.md, from files to answers: each statement is run as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clickhouse_clip.sql.statements import read_statements
from tests import toy
from tests.embedded.conftest import Server, pixels, save_picture
from tests.embedded.engine import Engine
from tests.embedded.laion import write_files

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="the SQL files are for engines with vector indexes"
)

PAGE = Path(__file__).parents[2] / "docs" / "analyst.md"
ROWS = 1_000


def steps() -> dict[int, tuple[str, str]]:
    """The page's statements by number: their language, and what they say."""
    found = re.findall(
        r"^\*\*(\d+)\.\*\*.*?```(sh|sql)\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return {int(number): (language, text.strip()) for number, language, text in found}


@pytest.fixture(scope="module", autouse=True)
def _files(server: Server) -> None:
    """LAION's files as the page has them, of 2,000 pictures, and a picture to search by."""
    random = np.random.default_rng(5)
    images = random.normal(size=(2 * ROWS, toy.DIM))
    images[20] = toy.image_vector(pixels(20))
    images[ROWS + 5] = images[5] + 0.01
    texts = random.normal(size=(2 * ROWS, toy.DIM))
    for vectors in (images, texts):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for shard in (0, 1):
        rows = slice(shard * ROWS, (shard + 1) * ROWS)
        metadata = pa.table(
            {
                "caption": [f"{number} in the snow" for number in range(ROWS)],
                "NSFW": ["UNLIKELY"] * ROWS,
                "similarity": (images * texts).sum(1)[rows],
                "url": [f"https://example.org/{shard}/{number}" for number in range(ROWS)],
            }
        )
        write_files(server.user_files / "laion", shard, images[rows], texts[rows], metadata)
    save_picture(server.user_files / "dog.png", 20)
    (server.user_files / "dog.png").rename(server.user_files / "dog.jpg")


@pytest.fixture(scope="module")
def answers(server: Server, _files: None) -> Iterator[dict[int, list[list[Any]]]]:
    """What each step answers; the first one runs before the engine, which is this process' own."""
    load, *rest = (text for _, text in steps().values())
    name, *arguments = shlex.split(load.replace("0-409", "0-1"))
    assert name == "load-laion"
    subprocess.run(
        [
            *(sys.executable, "-m", "clickhouse_clip.sql.load_cli", *arguments),
            *("--dsn", f"chdb://{server.data_dir}"),
            *("--config-file", str(server.config_dir / "config.xml")),
        ],
        cwd=server.user_files,
        check=True,
        timeout=120,
    )
    engine = server.start_engine()
    try:
        yield {number: run(engine, server, text) for number, text in enumerate(rest, 2)}
    finally:
        engine.close()


def run(engine: Engine, server: Server, text: str) -> list[list[Any]]:
    if not text.startswith("clickhouse-client"):
        # The embedded engine takes relative paths by its working directory.
        return engine.query(text.replace("'dog.jpg'", f"'{server.user_files}/dog.jpg'"))
    words = shlex.split(text)
    parameters = dict(word[8:].split("=") for word in words if word.startswith("--param_"))
    rows: list[list[Any]] = []
    for statement in read_statements(words[-1]):
        sql = statement.replace("512", str(toy.DIM))
        rows = engine.query(
            sql, **(parameters if ":Identifier}" in sql or ":String}" in sql else {})
        )
    while rows and text.endswith("indexes.sql"):
        time.sleep(0.2)
        rows = engine.query(sql, **parameters)
    return rows


def test_ten_statements() -> None:
    assert list(steps()) == list(range(1, 11))
    assert {number for number, (language, _) in steps().items() if language == "sh"} == {1, 4, 5}


def test_answers(answers: dict[int, list[list[Any]]]) -> None:
    assert answers[2] == [[2 * ROWS, 2, 0]]
    assert answers[3] == [[100]]
    assert len(answers[6]) == 10
    assert answers[7][0][0] == "https://example.org/0/20"
    assert answers[7][0][2] == pytest.approx(1, abs=0.01)
    assert all("snow" in caption for _, caption, _ in answers[8])
    assert [(id_, url) for id_, url, _ in answers[9]] == [(10_000_005, "https://example.org/1/5")]
    assert sum(pictures for _, pictures, _ in answers[10]) == 1_000
