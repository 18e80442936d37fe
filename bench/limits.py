"""The limits beside which a rate is read: the engine's own forward pass, and matrix products."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.image import open_picture, preprocess
from clickhouse_clip.udf.settings import Precision
from clickhouse_clip.udf.text import Tokenizer, batch, padded_length

#: Multiplications and additions of ViT-B/32's text tower: 12 layers of width 512 have 37.8 million
#: weights, each used once a token (attention itself is below 1 % at these lengths).
FLOP_PER_TOKEN = 75.6e6

#: The same of its image tower, for 50 tokens of width 768, patches included.
FLOP_PER_PICTURE = 8.7e9

_BATCH_TOKENS = (128, 256, 512, 1024)
_BATCH_PICTURES = (2, 8, 32)


def forward_texts(bundle: Path, texts: list[str], precision: Precision) -> dict[str, float]:
    """The tower alone on these texts, in its best batches: texts and FLOP a second."""
    manifest = load_manifest(bundle)
    tokens = Tokenizer.load(bundle, manifest).encode([text.encode() for text in texts])
    tokens.sort(key=len)
    tower = load(bundle, manifest, "text", precision=precision)
    best = {"texts_per_second": 0.0, "flops": 0.0, "batch_tokens": 0.0}
    for limit in _BATCH_TOKENS:
        batches = []
        rest = list(tokens)
        while rest:
            length = padded_length(len(rest[-1]), manifest.text)
            rows = max(1, limit // length)
            batches.append(batch(rest[-rows:], manifest.text))
            del rest[-rows:]
        tower.encode(batches[0])
        started = perf_counter()
        for each in batches:
            tower.encode(each)
        seconds = perf_counter() - started
        if len(texts) / seconds > best["texts_per_second"]:
            flop = sum(each.size for each in batches) * FLOP_PER_TOKEN
            best = {
                "texts_per_second": len(texts) / seconds,
                "flops": flop / seconds,
                "batch_tokens": float(limit),
            }
    return best


def forward_pictures(bundle: Path, paths: list[Path], precision: Precision) -> dict[str, float]:
    """The tower alone on these pictures, decoded before, in its best batch."""
    manifest = load_manifest(bundle)
    pixels = np.stack(
        [
            preprocess(open_picture(path.read_bytes(), max_pixels=10**8), manifest.image)
            for path in paths
        ]
    )
    tower = load(bundle, manifest, "image", precision=precision)
    best = {"pictures_per_second": 0.0, "flops": 0.0, "batch": 0.0}
    for rows in _BATCH_PICTURES:
        tower.encode(pixels[:rows])
        started = perf_counter()
        for first in range(0, len(pixels), rows):
            tower.encode(pixels[first : first + rows])
        rate = len(pixels) / (perf_counter() - started)
        if rate > best["pictures_per_second"]:
            best = {
                "pictures_per_second": rate,
                "flops": rate * FLOP_PER_PICTURE,
                "batch": float(rows),
            }
    return best


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
