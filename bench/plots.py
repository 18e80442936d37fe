"""The results as pictures: rates beside their peers, and searches under load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_KINDS = {"short_texts": "short texts", "captions": "captions", "pictures": "pictures"}


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write `throughput.png` and `latency.png`."""
    _throughput(result, folder / "throughput.png")
    _latency(result, folder / "latency.png")


def _throughput(result: dict[str, Any], path: Path) -> None:
    rates = {"through SQL": {kind: result["ours"][kind]["median"] for kind in _KINDS}}
    rates.update(result["peers"])
    rates["the guide's script"] = {kind: result["baseline"][kind]["median"] for kind in _KINDS}
    figure, axes = plt.subplots(1, len(_KINDS), figsize=(12, 3.2), layout="constrained")
    for axis, (kind, title) in zip(axes, _KINDS.items(), strict=True):
        names = list(rates)[::-1]
        values = [rates[name][kind] for name in names]
        colors = ["#1a6dd9" if name == "through SQL" else "#b9c2cf" for name in names]
        bars = axis.barh(names if axis is axes[0] else range(len(names)), values, color=colors)
        axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axis.set_title(f"{title} a second", loc="left", fontsize=11)
        axis.set_xlim(0, max(values) * 1.2)
        axis.set_xticks([])
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0)
        if axis is not axes[0]:
            axis.set_yticks([])
    machine = result["machine"]
    figure.suptitle(
        f"ViT-B/32, {machine['processors']} processors ({machine['processor']}), "
        f"{result['precision']}",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _latency(result: dict[str, Any], path: Path) -> None:
    load = sorted(1e3 * each for each in result["ours"]["under_load"]["seconds"])
    idle = 1e3 * result["ours"]["warm_seconds"]["p50"]
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.plot(load, [place / len(load) for place in range(1, len(load) + 1)], color="#1a6dd9")
    axis.axvline(idle, color="#b9c2cf")
    axis.annotate(f"idle: {idle:.0f} ms", (idle, 0.03), fontsize=9, color="#5b6573")
    axis.set_xlabel("milliseconds of a search query while texts and pictures are embedded")
    axis.set_ylabel("share of queries")
    axis.set_xlim(left=0)
    axis.set_ylim(0, 1)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
