"""`make bench`: everything in one run, a table on the terminal, JSON and plots in bench/results.

    python -m bench.run [--quick]

Rates are medians of `_REPEATS` runs; each of ours encodes texts that no run before had, so the
cache answers nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from bench import limits, plots, sql, workload
from bench.peers import OnnxRuntime, OpenClip
from bench.servers import BaselineServer, Server
from clickhouse_clip.udf.bundle_cli import main as clip_bundle
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.engines.openvino import resolve_precision
from clickhouse_clip.udf.launch import request_report
from clickhouse_clip.udf.settings import Precision

_WORK = Path("build/bench").absolute()
_RESULTS = Path("bench/results")
_REPEATS = 3
_SEED = 0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is encoded: of ours, of the baseline and the peers, which are slower."""

    short_texts: int
    captions: int
    pictures: int
    slow_texts: int
    slow_pictures: int
    searches: int
    load_texts: int
    load_pictures: int


_FULL = Sizes(20_000, 4_000, 500, 200, 60, 60, 100_000, 2_000)
_QUICK = Sizes(2_000, 600, 60, 30, 10, 10, 6_000, 150)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes")
    arguments = parser.parse_args(argv)
    result = Bench(_QUICK if arguments.quick else _FULL).run()
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
        self.checkpoint, self.bundle = _WORK / "vit-b-32.safetensors", _WORK / "vit-b-32"
        self.pictures = _WORK / "pictures"
        self.result: dict[str, Any] = {"machine": _machine(), "precision": self.precision}

    def run(self) -> dict[str, Any]:
        """Run all sections."""
        self.prepare()
        for section in (self.ours, self.baseline, self.peers, self.limits):
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
        workload.make_pictures(self.pictures, max(sizes.pictures, sizes.load_pictures))
        self.paths = [self.pictures / f"{number}.jpg" for number in range(sizes.pictures)]

    def ours(self) -> dict[str, Any]:
        """our functions, through SQL"""
        sizes = self.sizes
        server = Server(_WORK / "ours", self.bundle, self.pictures, "--precision", self.precision)
        found: dict[str, Any] = {}
        with server.open() as engine:
            found["first_call_seconds"] = sql.seconds_of(engine, "SELECT length(encode_text('a'))")
            fresh = workload.short_texts(2 * sizes.searches, seed=99)
            warm = sql.latencies(engine, "encode_text", fresh[: sizes.searches])
            found["warm_seconds"] = {"p50": sql.median(warm), "p95": sql.percentile(warm, 0.95)}
            for kind, make, rows in (
                ("short_texts", workload.short_texts, sizes.short_texts),
                ("captions", workload.captions, sizes.captions),
            ):
                found[kind] = self.rates(
                    lambda run, make=make, rows=rows, kind=kind: self.text_rate(
                        engine, f"{kind}_{run}", make(rows, seed=run)
                    )
                )
            sql.load_rows(engine, "paths", [str(path) for path in self.paths])
            found["pictures"] = self.rates(
                lambda _: sql.rate(engine, "encode_image", "paths", sizes.pictures)
            )
            found["under_load"] = self.under_load(engine, fresh[sizes.searches :])
            found["memory"] = self.memory(engine, server)
        return found

    def rates(self, measure: Callable[[int], float]) -> dict[str, float]:
        """Median and spread of some runs of one measurement."""
        values = [measure(run) for run in range(_REPEATS)]
        self.say(f"    {', '.join(f'{value:,.1f}' for value in values)} rows a second")
        return {"median": sql.median(values), "least": min(values), "most": max(values)}

    def text_rate(self, engine: Any, table: str, texts: list[str]) -> float:
        """Texts a second, from a table that is made first."""
        sql.load_rows(engine, table, texts)
        return sql.rate(engine, "encode_text", table, len(texts))

    def under_load(self, engine: Any, texts: list[str]) -> dict[str, Any]:
        """Searches while one client embeds texts and another pictures."""
        sizes = self.sizes
        found, busy = sql.latencies_under_load(
            engine,
            texts,
            [
                "SELECT count() FROM (SELECT encode_text('bulk ' || toString(number)) AS v "
                f"FROM numbers({sizes.load_texts})) WHERE length(v) > 0",
                "SELECT count() FROM (SELECT encode_image(concat("
                f"'{self.pictures}/', toString(number), '.jpg')) AS v "
                f"FROM numbers({sizes.load_pictures})) WHERE length(v) > 0",
            ],
        )
        return {
            "p50": sql.median(found),
            "p95": sql.percentile(found, 0.95),
            "seconds": found,
            "load_lasted": busy,
        }

    def memory(self, engine: Any, server: Server) -> dict[str, float]:
        """Memory with all five functions used by four workers each."""
        arguments = {"text": "toString(number)", "path": f"'{self.paths[0]}'", "bytes": "raw"}
        queries = []
        for function, kind in (
            ("encode_text", "text"),
            ("encode_image", "path"),
            ("encode_image_or_empty", "path"),
        ):
            queries += [
                f"SELECT count() FROM (SELECT {function}({arguments[kind]}) AS v "
                "FROM numbers(64)) WHERE length(v) > 0"
            ] * 4
        for function in ("encode_image_bytes", "encode_image_bytes_or_empty"):
            queries += [
                f"SELECT length({function}(raw)) "
                f"FROM file('{self.paths[0]}', 'RawBLOB', 'raw String')"
            ] * 4
        sql.at_once(engine, queries)
        report = request_report(str(server.runtime), "status") or {}
        workers = sql.children_of(engine.process.pid)
        return {
            "workers": len(workers),
            "bytes": float(sql.proportional_bytes([*workers, int(str(report["pid"]))])),
        }

    def baseline(self) -> dict[str, Any]:
        """the guide's way: a line at a time, one worker"""
        sizes = self.sizes
        server = BaselineServer(_WORK / "baseline", self.bundle, self.pictures, self.checkpoint)
        found: dict[str, Any] = {}
        with server.open() as engine:
            found["first_call_seconds"] = sql.seconds_of(engine, "SELECT baseline_text('a')")
            texts = workload.short_texts(12, seed=99)
            found["warm_seconds"] = {
                "p50": sql.median(sql.latencies(engine, "baseline_text", texts))
            }
            for kind, make in (
                ("short_texts", workload.short_texts),
                ("captions", workload.captions),
            ):
                texts = make(sizes.slow_texts, seed=0)
                sql.load_rows(engine, kind, texts)
                found[kind] = {"median": sql.rate(engine, "baseline_text", kind, len(texts))}
            engine.query("SELECT baseline_image('" + str(self.paths[0]) + "')")
            sql.load_rows(engine, "paths", [str(path) for path in self.paths])
            found["pictures"] = {
                "median": sql.rate(engine, "baseline_image", "paths", sizes.slow_pictures)
            }
            workers = sql.children_of(engine.process.pid)
            found["memory"] = {
                "workers": len(workers),
                "bytes": float(sql.proportional_bytes(workers)),
            }
        return found

    def peers(self) -> dict[str, Any]:
        """open_clip on torch, and ONNX Runtime, in Python at their best batch"""
        sizes = self.sizes
        texts = {
            "short_texts": workload.short_texts(sizes.slow_texts, seed=0),
            "captions": workload.captions(sizes.slow_texts, seed=0),
        }
        found: dict[str, Any] = {}
        for name, make in (
            ("torch fp32", lambda: OpenClip(self.checkpoint, bf16=False)),
            ("torch bf16", lambda: OpenClip(self.checkpoint, bf16=True)),
            ("onnxruntime fp32", lambda: OnnxRuntime(self.checkpoint)),
        ):
            peer = make()
            found[name] = {kind: peer.texts(rows) for kind, rows in texts.items()}
            found[name]["pictures"] = peer.pictures(self.paths[: sizes.slow_pictures])
            self.say(f"    {name}: {found[name]}")
        return found

    def limits(self) -> dict[str, Any]:
        """the engine's own forward pass, and matrix products"""
        sizes, bundle, precision = self.sizes, self.bundle, self.precision
        count = min(sizes.captions, 2000)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return {
            "short_texts": limits.forward_texts(
                bundle, workload.short_texts(2 * count, seed=0), precision
            ),
            "captions": limits.forward_texts(bundle, workload.captions(count, seed=0), precision),
            "pictures": limits.forward_pictures(bundle, self.paths[:200], precision),
            "matrix_products": limits.matrix_products(dtype),
        }


def table(result: dict[str, Any]) -> list[str]:
    """The table that is printed, and that the README shows."""
    ours, baseline, bounds = result["ours"], result["baseline"], result["limits"]
    lines = [
        "",
        f"{result['machine']['processor']}, {result['machine']['processors']} processors, "
        f"{result['precision']}, {result['seconds']:.0f} s",
        "",
        f"{'rows a second':<24}{'ours':>10}{'baseline':>10}{'ratio':>8}"
        f"{'forward':>10}{'share':>8}  peers",
    ]
    rates = {"short_texts": "texts_per_second", "captions": "texts_per_second"}
    for kind in ("short_texts", "captions", "pictures"):
        mine, theirs = ours[kind]["median"], baseline[kind]["median"]
        forward = bounds[kind][rates.get(kind, "pictures_per_second")]
        peers = ", ".join(f"{name} {values[kind]:.1f}" for name, values in result["peers"].items())
        lines.append(
            f"{kind.replace('_', ' '):<24}{mine:>10,.1f}{theirs:>10,.1f}{mine / theirs:>7.1f}x"
            f"{forward:>10,.1f}{mine / forward:>8.0%}  {peers}"
        )
    first = ours["first_call_seconds"], baseline["first_call_seconds"]
    warm = ours["warm_seconds"]["p50"], baseline["warm_seconds"]["p50"]
    load = ours["under_load"]
    memory = ours["memory"], baseline["memory"]
    lines += [
        "",
        f"first call, all down     {first[0]:8.2f} s, baseline {first[1]:.2f} s "
        f"(1/{first[1] / first[0]:.1f})",
        f"one text, warm           {warm[0] * 1e3:8.1f} ms, baseline {warm[1] * 1e3:.1f} ms "
        f"(1/{warm[1] / warm[0]:.1f})",
        f"a search under load      {load['p95'] * 1e3:8.1f} ms p95, "
        f"{load['p95'] / warm[0]:.1f} x the idle p50",
        f"memory                   {memory[0]['bytes'] / 2**20:8,.0f} MiB with "
        f"{memory[0]['workers']} workers; baseline "
        f"{memory[1]['bytes'] / memory[1]['workers'] / 2**20:,.0f} MiB a worker",
        f"matrix products          {bounds['matrix_products'] / 1e12:8.2f} TFLOP/s; of it "
        + ", ".join(
            f"{bounds[kind]['flops'] / bounds['matrix_products']:.0%} in {kind.replace('_', ' ')}"
            for kind in ("short_texts", "captions", "pictures")
        ),
    ]
    return lines


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
        "disk_free_bytes": shutil.disk_usage(".").free,
    }


if __name__ == "__main__":
    sys.exit(main())
