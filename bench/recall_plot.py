"""Draws what bench/recall.py measured: recall over latency, a line for each kind of index.

    python -m bench.recall_plot bench/results/recall-200000.json

Writes a PNG of the same name beside it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SCALE = 2
_PANEL, _HEIGHT, _LEFT, _TOP, _FOOT = 460, 300, 60, 84, 96
_INK, _SOFT, _FAINT = "#1f2530", "#5b6573", "#e3e7ec"
_COLORS = ("#1a6dd9", "#7fb2f0", "#d1711a", "#f0b57f", "#2b9348", "#94d2a4")
#: Lines to read the plot by; the README names the settings that reach them.
_GOALS = (0.95, 0.99)

Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """Axes: milliseconds, logarithmic, from `fast` to `slow`; recall from `low` to 1."""

    left: float
    fast: float
    slow: float
    low: float

    def place(self, milliseconds: float, recall: float) -> Point:
        """Where a point is on the sheet."""
        right = math.log(milliseconds / self.fast) / math.log(self.slow / self.fast)
        down = (1 - max(recall, self.low)) / (1 - self.low)
        return (self.left + right * _PANEL) * _SCALE, (_TOP + down * _HEIGHT) * _SCALE


def draw(result: dict[str, Any]) -> Image.Image:
    """The sheet: a panel for each k."""
    found = result["found"]
    counts = sorted({row["k"] for row in found})
    series = _series(found)
    width = (_LEFT + _PANEL) * len(counts) + 30
    size = (width * _SCALE, (_TOP + _HEIGHT + _FOOT) * _SCALE)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    _text(pen, (20, 14), "Recall of the vector index, and what it takes", 20, _INK)
    about = f"{result['rows']:,} pictures, {result['queries']} queries, generated in clusters; "
    _text(pen, (20, 42), about + "each point a hnsw_candidate_list_size_for_search", 12)
    for number, k in enumerate(counts):
        rows = [row for row in found if row["k"] == k]
        panel = Panel(
            left=_LEFT + number * (_LEFT + _PANEL),
            fast=0.8 * min(row["median_ms"] for row in rows),
            slow=1.2 * max(row["median_ms"] for row in rows),
            low=min(0.9, *(row["recall"] - 0.01 for row in rows)),
        )
        _axes(pen, panel, k)
        for name, color in zip(series, _COLORS, strict=False):
            _line(pen, panel, [row for row in rows if _kind(row["setting"]) == name], color)
        exact = next(row for row in rows if row["setting"] == "exact")
        x, y = panel.place(exact["median_ms"], 1)
        pen.rectangle((x - 8, y - 8, x + 8, y + 8), fill=_INK)
        pen.text((x, y + 14), "brute force", _INK, _font(11), anchor="ma")
    for number, (name, color) in enumerate(zip(series, _COLORS, strict=False)):
        x = 20 + number // 2 * (width - 40) // max(1, math.ceil(len(series) / 2))
        y = _TOP + _HEIGHT + 50 + number % 2 * 20
        pen.line(_scaled(x, y + 7, x + 22, y + 7), color, 3 * _SCALE)
        _text(pen, (x + 30, y), name, 12, _INK)
    return sheet


def _kind(setting: str) -> str:
    """The setting without its number of candidates."""
    return ", ".join(part for part in setting.split(", ") if not part.endswith("candidates"))


def _series(found: Sequence[dict[str, Any]]) -> list[str]:
    searched = [row["setting"] for row in found if "candidates" in row["setting"]]
    return sorted({_kind(setting) for setting in searched})


def _axes(pen: ImageDraw.ImageDraw, panel: Panel, k: int) -> None:
    left, right = panel.left, panel.left + _PANEL
    _text(pen, (left, _TOP - 18), f"recall@{k}", 13, _INK)
    for recall in (panel.low, *_GOALS, 1.0):
        _, y = panel.place(panel.fast, recall)
        pen.line((left * _SCALE, y, right * _SCALE, y), _FAINT, _SCALE)
        pen.text((left * _SCALE - 10, y), f"{recall:.2f}", _SOFT, _font(11), anchor="rm")
    bottom = (_TOP + _HEIGHT) * _SCALE
    for power in range(-1, 5):
        for digit in (1, 2, 5):
            milliseconds = digit * 10.0**power
            if panel.fast <= milliseconds <= panel.slow:
                x, _ = panel.place(milliseconds, 1)
                pen.line((x, bottom, x, bottom + 8), _SOFT, _SCALE)
                pen.text((x, bottom + 12), f"{milliseconds:g}", _SOFT, _font(11), anchor="ma")
    _text(pen, (right - 150, _TOP + _HEIGHT + 22), "median milliseconds a search", 11)


def _line(
    pen: ImageDraw.ImageDraw, panel: Panel, rows: Sequence[dict[str, Any]], color: str
) -> None:
    points = sorted(
        (int(row["setting"].split(" candidates")[0].split(", ")[-1]), row) for row in rows
    )
    places = [panel.place(row["median_ms"], row["recall"]) for _, row in points]
    pen.line([value for place in places for value in place], color, 2 * _SCALE)
    for x, y in places:
        pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=color)


def _text(pen: ImageDraw.ImageDraw, place: Point, text: str, size: int, color: str = _SOFT) -> None:
    pen.text((place[0] * _SCALE, place[1] * _SCALE), text, color, _font(size))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def _scaled(*values: float) -> tuple[float, ...]:
    return tuple(value * _SCALE for value in values)


def main() -> None:
    """Draw the file named on the command line."""
    file = Path(sys.argv[1])
    picture = file.with_suffix(".png")
    draw(json.loads(file.read_text())).save(picture, optimize=True)
    print(picture)


if __name__ == "__main__":
    main()
