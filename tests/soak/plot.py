"""A soak's memory and descriptors over time, as a picture."""

from __future__ import annotations

from pathlib import Path

from tests.soak.load import Soak


def plot(result: Soak, path: Path) -> None:
    """Write a PNG; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(result.history), figsize=(11, 5), sharex=True)
    for column, (name, history) in enumerate(result.history.items()):
        memory = [value / 2**20 for value in history.per_process("resident_bytes")]
        axes[0][column].plot(history.seconds, memory)
        axes[0][column].set_title(f"one {name}" if name == "worker" else f"the {name}")
        axes[1][column].plot(history.seconds, history.per_process("descriptors"))
        axes[1][column].set_xlabel("seconds")
        for row in (0, 1):
            axes[row][column].set_ylim(bottom=0)
            axes[row][column].grid(visible=True, alpha=0.3)
    axes[0][0].set_ylabel("MiB resident")
    axes[1][0].set_ylabel("descriptors")
    figure.suptitle(f"{result.clients} clients, {result.rows:,} rows, {len(result.faults)} faults")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
