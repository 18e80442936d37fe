"""What more rows and more workers cost, in time and memory. The demo model, which is quick, so that
what is seen is the way to the encoder and back and not the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import sql
from bench.servers import Server
from bench.sizes import Sizes
from clickhouse_clip.udf.launch import request_report
from tests.embedded.engine import Engine

_BUNDLE = Path("demo/bundle").absolute()
_WORKERS = (1, 2, 4, 8)


class Growth:
    """One server with the demo model."""

    def __init__(self, sizes: Sizes, folder: Path, say: Callable[[str], None]) -> None:
        self._rows = sizes.growth
        self._server = Server(folder, _BUNDLE, Path("demo/pictures").absolute())
        self._say = say
        self._texts = 0

    def run(self) -> dict[str, Any]:
        """Seconds and memory for each number of rows, and of workers."""
        with self._server.open() as engine:
            self._measure(engine, 1, 1)  # starts all that must be started
            return {
                "rows": [self._measure(engine, rows, 1) for rows in self._rows],
                "workers": [
                    self._measure(engine, max(self._rows) // 10, workers) for workers in _WORKERS
                ],
            }

    def _measure(self, engine: Engine, rows: int, workers: int) -> dict[str, float]:
        # Each text is a new one: none comes from the cache.
        first, self._texts = self._texts, self._texts + rows
        seconds = sql.seconds_of(
            engine,
            "SELECT count() FROM (SELECT encode_text('text ' || toString(number)) AS v "
            f"FROM numbers_mt({first}, {rows})) WHERE length(v) > 0 "
            f"SETTINGS max_threads = {workers}, max_block_size = {max(1, rows // workers)}",
        )
        report = request_report(str(self._server.runtime), "status") or {}
        pids = [*sql.children_of(engine.process.pid), int(str(report["pid"]))]
        found = {
            "rows": rows,
            "workers": workers,
            "seconds": seconds,
            "bytes": sql.proportional_bytes(pids),
        }
        self._say(
            f"    {rows:>7,} rows, {workers} workers at most: {seconds:8.3f} s, "
            f"{found['bytes'] / 2**20:,.0f} MiB in {len(pids)} processes"
        )
        return found
