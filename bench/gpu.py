"""`python -m bench.gpu --bundle DIR`: what a GPU's towers give, beside what others have published.

Rates of the engine alone: token ids and pixels as numpy arrays in, vectors as numpy arrays out,
copies to the GPU and back included. The bundle must have been exported with --cuda.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import Manifest, load_manifest
from clickhouse_clip.udf.cuda_weights import Kind
from clickhouse_clip.udf.engines import Tower
from clickhouse_clip.udf.engines import torch as engine
from clickhouse_clip.udf.errors import ClipError
from clickhouse_clip.udf.settings import Precision

#: Tokens of a text: a label, LAION's mean, a long caption, and the whole context.
_LENGTHS = (8, 16, 32, 77)
_BATCHES = (1, 64, 256, 1024)
_REPEATS = 5

#: Measured by others, on other machines; the sources give no more detail than this.
PUBLISHED = (
    ("pictures", 15834, "image tower of ViT-B/32 alone, batch 1024, RTX 5090"),
    ("pictures", 286, "clip-as-service, TITAN RTX"),
    ("texts", 1064, "clip-as-service, TITAN RTX"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 1 with a message if the device or the bundle cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try this script")
    parser.add_argument("--precision", choices=get_args(Precision), default="auto")
    parser.add_argument("--rows", type=int, default=20_000, help="of each timing (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        manifest = load_manifest(arguments.bundle)
        device = engine.find_device(arguments.device)
        precision = engine.resolve_precision(arguments.precision, device)
        print(
            f"{manifest.model}, {engine.describe(device)}, {precision}, torch {torch.__version__}"
        )
        for kind in get_args(Kind):
            started = perf_counter()
            tower = engine.load(
                arguments.bundle, manifest, kind, device=arguments.device, precision=precision
            )
            print(f"\n{kind} tower, loaded in {perf_counter() - started:.1f} s")
            _measure(tower, manifest, kind, arguments.rows)
    except ClipError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 1
    print("\npublished, on other machines")
    for what, rate, source in PUBLISHED:
        print(f"{rate:>8,} {what}/s  {source}")
    return 0


def _measure(tower: Tower, manifest: Manifest, kind: Kind, rows: int) -> None:
    unit = "tokens" if kind == "text" else "pixels"
    print(f"{unit:>8} {'batch':>6} {'rows/s':>10} {'spread':>7} {'ms a batch':>11}")
    if kind == "image":
        sizes = [manifest.image.height]
    elif manifest.text.causal:
        sizes = sorted({min(length, manifest.text.context_length) for length in _LENGTHS})
    else:
        sizes = [manifest.text.context_length]
    for size in sizes:
        for batch in _BATCHES:
            if batch <= rows:
                rates = _rates(tower, _batch(manifest, kind, batch, size), rows)
                rate = statistics.median(rates)
                spread, ms = (max(rates) - min(rates)) / rate, 1000 * batch / rate
                print(f"{size:>8} {batch:>6} {rate:>10,.0f} {spread:>7.0%} {ms:>11.1f}")


def _rates(tower: Tower, batch: NDArray[Any], rows: int) -> list[float]:
    """Rows a second, of several timings; a batch of one is timed as often as one of 64."""
    count = max(1, rows // max(len(batch), 64) // _REPEATS)
    tower.encode(batch)
    rates = []
    for _ in range(_REPEATS):
        started = perf_counter()
        for _ in range(count):
            tower.encode(batch)
        rates.append(count * len(batch) / (perf_counter() - started))
    return rates


def _batch(manifest: Manifest, kind: Kind, rows: int, size: int) -> NDArray[Any]:
    random = np.random.default_rng(0)
    if kind == "image":
        return random.integers(0, 256, (rows, size, manifest.image.width, 3), np.uint8)
    end = manifest.text.vocab_size - 1
    tokens = random.integers(1, end - 1, (rows, size))
    tokens[:, 0], tokens[:, -1] = end - 1, end
    return tokens


if __name__ == "__main__":
    sys.exit(main())
