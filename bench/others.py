"""The guide's way through SQL, and other ways to the same vectors in Python."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import sql, workload
from bench.peers import OnnxRuntime, OpenClip
from bench.servers import BaselineServer
from bench.sizes import Sizes


def baseline(
    server: BaselineServer, sizes: Sizes, paths: list[Path], say: Callable[[str], None]
) -> dict[str, Any]:
    """Latency, rates and memory of the baseline's functions."""
    found: dict[str, Any] = {}
    with server.open() as engine:
        engine.query("SELECT baseline_text('a')")
        texts = workload.short_texts(12, seed=99)
        found["warm_seconds"] = {"p50": sql.median(sql.latencies(engine, "baseline_text", texts))}
        for kind, make in (("short_texts", workload.short_texts), ("captions", workload.captions)):
            texts = make(sizes.slow_texts, seed=0)
            sql.load_rows(engine, kind, texts)
            found[kind] = {"median": sql.rate(engine, "baseline_text", kind, len(texts))}
        engine.query("SELECT baseline_image('" + str(paths[0]) + "')")
        sql.load_rows(engine, "paths", [str(path) for path in paths])
        found["pictures"] = {
            "median": sql.rate(engine, "baseline_image", "paths", sizes.slow_pictures)
        }
        workers = sql.children_of(engine.process.pid)
        found["memory"] = {
            "workers": len(workers),
            "bytes": float(sql.proportional_bytes(workers)),
        }
    rates = (f"{kind} {found[kind]['median']:.1f}" for kind in workload.KINDS)
    say(f"    {', '.join(rates)} rows a second")
    return found


def peers(
    sizes: Sizes, checkpoint: Path, paths: list[Path], say: Callable[[str], None]
) -> dict[str, Any]:
    """Rows a second of each peer at its best batch."""
    texts = {
        "short_texts": workload.short_texts(sizes.slow_texts, seed=0),
        "captions": workload.captions(sizes.slow_texts, seed=0),
    }
    found: dict[str, Any] = {}
    for name, make in (
        ("torch fp32", lambda: OpenClip(checkpoint, bf16=False)),
        ("torch bf16", lambda: OpenClip(checkpoint, bf16=True)),
        ("onnxruntime fp32", lambda: OnnxRuntime(checkpoint)),
    ):
        peer = make()
        found[name] = {kind: peer.texts(rows) for kind, rows in texts.items()}
        found[name]["pictures"] = peer.pictures(paths[: sizes.slow_pictures])
        rates = (f"{kind} {found[name][kind]:.1f}" for kind in workload.KINDS)
        say(f"    {name}: {', '.join(rates)} rows a second")
    return found
