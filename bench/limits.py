"""The limits beside which a rate is read: the engine's own forward pass, and matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.engines import Tower
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.image import open_picture, preprocess
from clickhouse_clip.udf.settings import Precision
from clickhouse_clip.udf.text import Tokenizer, batch, padded_length

#: Multiplications and additions of ViT-B/32's text tower: 12 layers of width 512 have 37.8 million
#: weights, each used once a token (attention itself is below 1 % at these lengths).
FLOP_PER_TOKEN = 75.6e6

#: The same of its image tower, for 50 tokens of width 768, patches included.
FLOP_PER_PICTURE = 8.7e9

_BATCH_TOKENS = (256, 512, 1024)
_BATCH_PICTURES = (2, 8, 32)

#: What `sweep` tries: tokens of a text, and rows of a batch.
_LENGTHS = (8, 16, 24, 32, 77)
_ROWS = (1, 4, 16, 64)
_SWEEP_SECONDS = 0.3


class Forward:
    """A tower alone on inputs of one kind, tokenised or decoded before, in its best batches."""

    def __init__(
        self, tower: Tower, rows: int, choices: list[list[NDArray[Any]]], flop_per_unit: float
    ) -> None:
        self._tower = tower
        self._rows = rows
        self._batches = min(choices, key=self._seconds)
        self._flop = flop_per_unit * sum(_units(batch) for batch in self._batches)

    def _seconds(self, batches: list[NDArray[Any]]) -> float:
        for each in batches[:2]:
            self._tower.encode(each)
        started = perf_counter()
        for each in batches:
            self._tower.encode(each)
        return perf_counter() - started

    def measure(self) -> tuple[float, float]:
        """Rows and FLOP a second."""
        seconds = self._seconds(self._batches)
        return self._rows / seconds, self._flop / seconds


def forward_texts(bundle: Path, texts: list[str], precision: Precision) -> Forward:
    """The text tower on these texts, those of one length together."""
    manifest = load_manifest(bundle)
    tokens = Tokenizer.load(bundle, manifest).encode([text.encode() for text in texts])
    tokens.sort(key=len)
    choices = []
    for limit in _BATCH_TOKENS:
        batches = []
        rest = list(tokens)
        while rest:
            length = padded_length(len(rest[-1]), manifest.text)
            rows = max(1, limit // length)
            batches.append(batch(rest[-rows:], length, manifest.text))
            del rest[-rows:]
        choices.append(batches)
    tower = load(bundle, manifest, "text", precision=precision)
    return Forward(tower, len(texts), choices, FLOP_PER_TOKEN)


def forward_pictures(bundle: Path, paths: list[Path], precision: Precision) -> Forward:
    """The image tower on these pictures."""
    manifest = load_manifest(bundle)
    pixels = np.stack(
        [
            preprocess(open_picture(path.read_bytes(), max_pixels=10**8), manifest.image)
            for path in paths
        ]
    )
    choices = [
        [pixels[first : first + rows] for first in range(0, len(pixels), rows)]
        for rows in _BATCH_PICTURES
    ]
    tower = load(bundle, manifest, "image", precision=precision)
    return Forward(tower, len(paths), choices, FLOP_PER_PICTURE)


def _units(batch: NDArray[Any]) -> int:
    """Tokens of an array of texts, pictures of one of pixels."""
    return batch.size if batch.ndim == 2 else len(batch)


def sweep(bundle: Path, precision: Precision) -> list[dict[str, Any]]:
    """Rows a second of either tower by length and rows of a batch; length 0 stands for pictures.

    Each is the median over `_SWEEP_SECONDS`, three batches at least.
    """
    manifest = load_manifest(bundle)
    random = np.random.default_rng(0)
    found = []
    for kind in ("text", "image"):
        tower = load(bundle, manifest, kind, precision=precision)
        for length in _LENGTHS if kind == "text" else (0,):
            for rows in _ROWS:
                if length * rows > max(_BATCH_TOKENS):
                    continue
                if kind == "text":
                    inputs = random.integers(256, manifest.text.vocab_size - 2, (rows, length))
                    inputs[:, 0] = manifest.text.vocab_size - 2
                    inputs[:, -1] = manifest.text.vocab_size - 1
                else:
                    shape = (rows, manifest.image.height, manifest.image.width, 3)
                    inputs = random.integers(0, 256, shape, np.uint8)
                tower.encode(inputs)
                rate = rows / median(_times(tower, inputs))
                found.append({"length": length, "rows": rows, "per_second": rate})
    return found


def _times(tower: Tower, inputs: NDArray[Any]) -> Iterator[float]:
    begun, calls = perf_counter(), 0
    while calls < 3 or perf_counter() - begun < _SWEEP_SECONDS:
        started = perf_counter()
        tower.encode(inputs)
        calls += 1
        yield perf_counter() - started


def matrix_products(dtype: torch.dtype) -> float:
    """The best FLOP a second of square products on all the processors that may be used."""
    torch.set_num_threads(usable_cpus())
    best = 0.0
    for side in (1024, 2048):
        left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
        left @ right
        for _ in range(5):
            started = perf_counter()
            left @ right
            best = max(best, 2 * side**3 / (perf_counter() - started))
    return best
