"""recall.sql, through `make recall`'s measurement, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    "ENGINE_PYTHON" in os.environ, reason="the SQL files are for engines with vector indexes"
)

ROOT = Path(__file__).parents[2]


def test_recall_is_measured_and_drawn(tmp_path: Path) -> None:
    options = ["--rows", "300", "--queries", "2", "--output", str(tmp_path)]
    for arguments in (
        ["bench.recall", *options],
        ["bench.recall_plot", tmp_path / "recall-300.json"],
    ):
        subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, timeout=300)
    result = json.loads((tmp_path / "recall-300.json").read_text())
    found = {(row["setting"], row["k"]): row for row in result["found"]}
    assert found["exact", 10]["recall"] == 1
    # bf16 may swap neighbours, and full precision puts them back.
    assert found["laion, bf16, 256 candidates", 10]["recall"] >= 0.9
    assert found["laion, bf16, 256 candidates, rescored", 100]["recall"] >= 0.98
    assert found["lean, bf16, 256 candidates", 100]["recall"] >= 0.95
    per_row = {name: table["bytes_per_row"] for name, table in result["tables"].items()}
    # The formula of indexes.sql.
    assert per_row["laion, bf16"] == pytest.approx(512 * 2 + 8 * 64 + 18, rel=0.02)
    assert per_row["laion, i8"] == pytest.approx(512 + 8 * 64 + 18, rel=0.02)
    with Image.open(tmp_path / "recall-300.png") as picture:
        assert picture.width > 1000
