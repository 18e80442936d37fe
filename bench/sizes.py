"""How much a run of the benchmarks encodes."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Sizes:
    """Rows of ours, of the baseline and the peers (`slow_`), of the forward pass, of what grows.

    repeats: rates of ours are medians of as many runs.
    all_precisions: int8 and fp32, too, and the sweep over lengths and batches.
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
    growth: tuple[int, ...]
    all_precisions: bool

    def less(self) -> Sizes:
        """For precisions beside the first."""
        return replace(
            self,
            short_texts=self.short_texts // 4,
            captions=self.captions // 3,
            pictures=self.pictures // 3,
        )


FULL = Sizes(
    repeats=3,
    short_texts=20_000,
    captions=3_000,
    pictures=400,
    slow_texts=96,
    slow_pictures=48,
    searches=100,
    load_texts=100_000,
    load_pictures=2_000,
    forward_texts=1_500,
    forward_pictures=100,
    growth=(1, 10, 100, 1_000, 10_000, 50_000, 100_000, 200_000),
    all_precisions=True,
)
QUICK = Sizes(
    repeats=1,
    short_texts=4_000,
    captions=1_000,
    pictures=120,
    slow_texts=16,
    slow_pictures=8,
    searches=100,
    load_texts=20_000,
    load_pictures=500,
    forward_texts=300,
    forward_pictures=32,
    growth=(1, 10, 100, 1_000, 10_000),
    all_precisions=False,
)
