"""`make bench`: everything in one run, a table on the terminal, JSON and plots in bench/results.

python -m bench.run [--quick]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from bench import limits, plots, sql, workload
from bench.growth import Growth
from bench.others import baseline, peers
from bench.ours import Ours
from bench.servers import BaselineServer
from bench.sizes import FULL, QUICK, Sizes
from bench.table import table
from clickhouse_clip.udf.bundle_cli import main as clip_bundle
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.engines.openvino import resolve_precision
from clickhouse_clip.udf.settings import Precision

_WORK = Path("build/bench").absolute()
_RESULTS = Path("bench/results")
_SEED = 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes")
    arguments = parser.parse_args(argv)
    result = Bench(QUICK if arguments.quick else FULL).run()
    _RESULTS.mkdir(exist_ok=True)
    name = "quick" if arguments.quick else "full"
    (_RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(table(result)))
    plots.draw(result, _RESULTS)
    return 0


class Bench:
    """One run; `result` grows section by section."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.started = time.monotonic()
        self.precision: Precision = resolve_precision("auto")
        _WORK.mkdir(parents=True, exist_ok=True)
        self.checkpoint = _WORK / "vit-b-32.safetensors"
        self.bundle, self.int8 = _WORK / "vit-b-32", _WORK / "vit-b-32-int8"
        self.pictures = _WORK / "pictures"
        self.result: dict[str, Any] = {"machine": _machine(), "precision": self.precision}

    def run(self) -> dict[str, Any]:
        """Run all sections."""
        self.prepare()
        sections = [
            self.first_calls,
            self.ours,
            self.baseline,
            self.peers,
            self.matrix_products,
            self.growth,
        ]
        if self.sizes.all_precisions:
            sections.append(self.sweep)
        for section in sections:
            self.say(section.__doc__ or "")
            self.result[section.__name__] = section()
        self.result["seconds"] = time.monotonic() - self.started
        return self.result

    def say(self, text: str) -> None:
        """Progress, for the person who waits."""
        print(f"[{time.monotonic() - self.started:6.0f} s] {text}", file=sys.stderr, flush=True)

    def prepare(self) -> None:
        """Make the model, with random weights from a fixed seed, and the pictures, once."""
        sizes = self.sizes
        self.say("preparing model and pictures")
        if not self.bundle.exists():
            torch.manual_seed(_SEED)
            model = open_clip.create_model("ViT-B-32")
            save_file({k: v.clone() for k, v in model.state_dict().items()}, self.checkpoint)
            command = ["export", "--model", "ViT-B-32", "--checkpoint", str(self.checkpoint)]
            if clip_bundle([*command, "--output", str(self.bundle)]):
                raise RuntimeError("clip-bundle export failed")
        wanted = sizes.all_precisions and not self.int8.exists()
        if wanted and clip_bundle(["quantize", str(self.bundle), "--output", str(self.int8)]):
            raise RuntimeError("clip-bundle quantize failed")
        workload.make_pictures(self.pictures, max(sizes.pictures, sizes.load_pictures))
        self.paths = [self.pictures / f"{number}.jpg" for number in range(sizes.pictures)]

    def first_calls(self) -> dict[str, float]:
        """the first answer, with nothing running"""
        found: dict[str, list[float]] = {}
        for _ in range(self.sizes.repeats):
            # In turns, so that all see the same machine and the same files in memory.
            for name, bundle, precision in self.models:
                found.setdefault(name, []).append(self._ours(bundle, precision).first_call())
            baseline = sql.first_call(self._baseline(), "baseline_text")
            found.setdefault("baseline", []).append(baseline)
        return {name: sql.median(seconds) for name, seconds in found.items()}

    def ours(self) -> dict[str, Any]:
        """our functions, through SQL"""
        found = {}
        for name, bundle, precision in self.models:
            self.say(f"  {name}")
            sizes = self.sizes if name == self.precision else self.sizes.less()
            found[name] = self._ours(bundle, precision, sizes).run()
        return found

    def _ours(self, bundle: Path, precision: Precision, sizes: Sizes | None = None) -> Ours:
        folder = _WORK / "ours"
        return Ours(sizes or self.sizes, folder, bundle, precision, self.paths, self.say)

    def _baseline(self) -> BaselineServer:
        return BaselineServer(_WORK / "baseline", self.bundle, self.pictures, self.checkpoint)

    @property
    def models(self) -> list[tuple[str, Path, Precision]]:
        """What is measured: a name, a bundle, and the precision to compute in."""
        found: list[tuple[str, Path, Precision]] = [
            (self.precision, self.bundle, self.precision),
            ("int8", self.int8, self.precision),
            ("fp32", self.bundle, "fp32"),
        ]
        if not self.sizes.all_precisions:
            return found[:1]
        return found[:2] if self.precision == "fp32" else found

    def baseline(self) -> dict[str, Any]:
        """the guide's way: a line at a time, one worker"""
        return baseline(self._baseline(), self.sizes, self.paths, self.say)

    def peers(self) -> dict[str, Any]:
        """open_clip on torch, and ONNX Runtime, in Python at their best batch"""
        return peers(self.sizes, self.checkpoint, self.paths, self.say)

    def matrix_products(self) -> dict[str, float]:
        """FLOP a second of matrix products"""
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        return {name: limits.matrix_products(dtype) for name, dtype in dtypes.items()}

    def sweep(self) -> list[dict[str, Any]]:
        """the engine's forward pass by length, batch and precision"""
        return [
            {**each, "precision": name}
            for name, bundle, precision in self.models
            for each in limits.sweep(bundle, precision)
        ]

    def growth(self) -> dict[str, Any]:
        """the cost as rows and workers grow, with the demo model"""
        return Growth(self.sizes, _WORK / "growth", self.say).run()


def _machine() -> dict[str, Any]:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "processors": usable_cpus(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
