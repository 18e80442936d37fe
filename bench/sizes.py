"""How much a run of the benchmarks encodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of ours, of the baseline and the peers (`slow_`), of the forward pass, of what grows.

    repeats: rates of ours are medians of as many runs.
    """

    repeats: int
    short_texts: int
    captions: int
    pictures: int
    slow_texts: int
    slow_pictures: int
    searches: int
    load_texts: int
    load_pictures: int
    forward_texts: int
    forward_pictures: int
    sweep_seconds: float
    growth: tuple[int, ...]


FULL = Sizes(
    repeats=3,
    short_texts=20_000,
    captions=4_000,
    pictures=500,
    slow_texts=120,
    slow_pictures=60,
    searches=100,
    load_texts=100_000,
    load_pictures=2_000,
    forward_texts=1_000,
    forward_pictures=100,
    sweep_seconds=0.5,
    growth=(1, 10, 100, 1_000, 10_000, 50_000, 100_000, 200_000),
)
QUICK = Sizes(
    repeats=1,
    short_texts=2_000,
    captions=600,
    pictures=150,
    slow_texts=30,
    slow_pictures=10,
    searches=20,
    load_texts=20_000,
    load_pictures=500,
    forward_texts=200,
    forward_pictures=24,
    sweep_seconds=0.05,
    growth=(1, 10, 100, 1_000, 10_000),
)
