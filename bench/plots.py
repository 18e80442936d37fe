"""The results as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.workload import KINDS

_BLUE, _DARK, _GREY = "#1a6dd9", "#0d3f85", "#b9c2cf"
_COLORS = {"fp32": _GREY, "bf16": _BLUE, "int8": _DARK}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write `throughput.png`, `forward.png`, `latency.png` and `growth.png`."""
    _throughput(result, folder / "throughput.png")
    if "sweep" in result:
        _forward(result, folder / "forward.png")
    _latency(result, folder / "latency.png")
    _growth(result, folder / "growth.png")


def _throughput(result: dict[str, Any], path: Path) -> None:
    ours = {f"through SQL, {name}": rates for name, rates in result["ours"].items()}
    baseline = {"the guide's script": result["baseline"]}
    rates = {
        title: {kind: each[kind]["median"] for kind in KINDS}
        for title, each in {**ours, **baseline}.items()
    } | result["peers"]
    figure, axes = plt.subplots(1, len(KINDS), figsize=(12, 3.7), layout="constrained")
    for axis, kind in zip(axes, KINDS, strict=True):
        names = list(rates)[::-1]
        values = [rates[name][kind] for name in names]
        colors = [_BLUE if name in ours else _GREY for name in names]
        bars = axis.barh(names if axis is axes[0] else range(len(names)), values, color=colors)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axis.set_title(f"{kind.replace('_', ' ')} a second", loc="left", fontsize=11)
        axis.set_xlim(0, max(values) * 1.2)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        if axis is not axes[0]:
            axis.set_yticks([])
    machine = result["machine"]
    figure.suptitle(
        f"ViT-B/32, {machine['processors']} processors ({machine['processor']})",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    _save(figure, path)


def _forward(result: dict[str, Any], path: Path) -> None:
    lengths = sorted({each["length"] for each in result["sweep"]}, key=lambda each: each or 1000)
    figure, axes = plt.subplots(1, len(lengths), figsize=(14, 3), layout="constrained")
    for axis, length in zip(axes, lengths, strict=True):
        for precision, color in _COLORS.items():
            points = [
                (each["rows"], each["per_second"])
                for each in result["sweep"]
                if each["length"] == length and each["precision"] == precision
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=color, label=precision, ms=4)
        axis.set_title(f"texts of {length} tokens" if length else "pictures", fontsize=10)
        axis.set_xscale("log", base=4)
        rows = sorted({each["rows"] for each in result["sweep"] if each["length"] == length})
        axis.set_xticks(rows, [str(each) for each in rows])
        axis.set_xlabel("rows in a batch", fontsize=9)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("rows a second")
    axes[0].legend(frameon=False, fontsize=9)
    _save(figure, path)


def _latency(result: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, ours in result["ours"].items():
        load = sorted(1e3 * each for each in ours["under_load"]["seconds"])
        idle = 1e3 * ours["warm_seconds"]["p50"]
        shares = [place / len(load) for place in range(1, len(load) + 1)]
        axis.plot(load, shares, color=_COLORS[name], label=f"{name}, idle p50 {idle:.0f} ms")
        axis.axvline(idle, color=_COLORS[name], linestyle=":")
    axis.set_xlabel("milliseconds of a search query while texts and pictures are embedded")
    axis.set_ylabel("share of queries")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=9, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _growth(result: dict[str, Any], path: Path) -> None:
    rows, workers = result["growth"]["rows"], result["growth"]["workers"]
    figure, (time, memory, more) = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    counts = [each["rows"] for each in rows]
    time.loglog(counts, [each["seconds"] for each in rows], "o-", color=_BLUE)
    time.set_ylabel("seconds")
    memory.semilogx(counts, [each["bytes"] / 2**20 for each in rows], "o-", color=_BLUE)
    memory.set_ylabel("MiB, service and workers")
    memory.set_ylim(bottom=0)
    more.plot(
        [each["workers"] for each in workers],
        [each["rows"] / each["seconds"] for each in workers],
        "o-",
        color=_BLUE,
    )
    more.set_ylabel("rows a second")
    more.set_ylim(bottom=0)
    for axis, label in ((time, "rows"), (memory, "rows"), (more, "workers at most")):
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
