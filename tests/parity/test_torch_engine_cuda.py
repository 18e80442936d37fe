"""The engine of GPUs on a GPU. Without one these tests skip: the others cover its logic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import Manifest, load_manifest
from clickhouse_clip.udf.engines import Tower, choice, openvino
from clickhouse_clip.udf.engines import torch as engine
from clickhouse_clip.udf.settings import Settings

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA GPU on this machine"
)

KINDS = ("text", "image")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return load_manifest(bundle)


@pytest.fixture(scope="module")
def on_cpu(bundle: Path, manifest: Manifest) -> dict[str, Tower]:
    """What the vectors are compared with; `test_vectors` compares it with open_clip."""
    return {
        "text": openvino.load(bundle, manifest, "text", precision="fp32"),
        "image": openvino.load(bundle, manifest, "image", precision="fp32"),
    }


def batch(kind: str, rows: int) -> NDArray[Any]:
    random = np.random.default_rng(rows)
    if kind == "image":
        return random.integers(0, 256, (rows, 224, 224, 3), np.uint8)
    tokens = random.integers(1, 49406, (rows, 16))
    tokens[:, 0], tokens[:, 12], tokens[:, 13:] = 49406, 49407, 0
    return tokens


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_vectors_equal_the_processor_s(
    bundle: Path, manifest: Manifest, on_cpu: dict[str, Tower], kind: Any
) -> None:
    tower = engine.load(bundle, manifest, kind, precision="fp32")
    rows = batch(kind, 5)
    difference = normalised(tower.encode(rows)) - normalised(on_cpu[kind].encode(rows))
    assert np.abs(difference).max() < 5e-5


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_vectors_point_where_fp32_ones_do(
    bundle: Path, manifest: Manifest, on_cpu: dict[str, Tower], kind: Any, precision: Any
) -> None:
    tower = engine.load(bundle, manifest, kind, precision=precision)
    rows = batch(kind, 5)
    cosine = (normalised(tower.encode(rows)) * normalised(on_cpu[kind].encode(rows))).sum(1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_one_vector_whatever_batch_it_comes_in(
    bundle: Path, manifest: Manifest, kind: Any
) -> None:
    tower = engine.load(bundle, manifest, kind, precision="fp32")
    rows = batch(kind, 600)
    together = normalised(tower.encode(rows))
    for row in (0, 255, 256, 599):
        alone = normalised(tower.encode(rows[row : row + 1]))
        assert np.abs(alone - together[row]).max() < 5e-5


def test_a_batch_larger_than_the_memory_is_encoded_in_smaller_pieces(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_PIECE_UNITS", {"image": 2048})
    tower = engine.load(bundle, manifest, "image", precision="fp32")
    rows = batch("image", 600)
    expected = tower.encode(rows)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        # What the tower takes, and 200 MB: 600 pictures need more in their first layer.
        most = torch.cuda.memory_reserved(0) + (200 << 20)
        torch.cuda.set_per_process_memory_fraction(most / total, 0)
        vectors = tower.encode(rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert np.abs(normalised(vectors) - normalised(expected)).max() < 5e-5


def test_auto_chooses_the_gpu(bundle: Path, manifest: Manifest, tmp_path: Path) -> None:
    settings = Settings(bundle, tmp_path / "run", tmp_path / "log")
    placed = choice.load(settings, manifest, "text", threads=1, lost=lambda: None)
    assert placed.device.startswith("cuda:0 (")
    assert placed.precision in ("bf16", "fp16", "fp32")
    assert isinstance(placed.tower, engine.TorchTower)
