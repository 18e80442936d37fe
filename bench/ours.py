"""What our functions do through SQL, with one bundle in one precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import limits, sql, workload
from bench.servers import Server
from bench.sizes import Sizes
from clickhouse_clip.udf.launch import request_report
from clickhouse_clip.udf.settings import Precision
from tests.embedded.engine import Engine


class Ours:
    """One server with our functions.

    Each run of a rate encodes texts that no run before had, so that the cache answers nothing, and
    is followed by the engine's own forward pass on inputs of the same kind: machines are faster at
    some moments than at others, and what arrives in SQL is a share of the moment's rate.
    """

    def __init__(
        self,
        sizes: Sizes,
        folder: Path,
        bundle: Path,
        precision: Precision,
        paths: list[Path],
        say: Callable[[str], None],
    ) -> None:
        self._sizes = sizes
        self._paths = paths
        self._pictures = paths[0].parent
        self._bundle = bundle
        self._precision = precision
        self._server = Server(folder, bundle, self._pictures, "--precision", precision)
        self._say = say

    def first_call(self) -> float:
        """Seconds until the first answer where nothing of ours runs."""
        return sql.first_call(self._server, "encode_text")

    def run(self) -> dict[str, Any]:
        """Latency, rates, memory, and searches under load."""
        sizes = self._sizes
        found: dict[str, Any] = {}
        with self._server.open() as engine:
            engine.query("SELECT encode_text('a')")  # loads the tower
            fresh = workload.short_texts(2 * sizes.searches, seed=99)
            warm = sql.latencies(engine, "encode_text", fresh[: sizes.searches])
            found["warm_seconds"] = {"p50": sql.median(warm), "p95": sql.percentile(warm, 0.95)}
            for kind, make, rows in (
                ("short_texts", workload.short_texts, sizes.short_texts),
                ("captions", workload.captions, sizes.captions),
            ):
                forward = limits.forward_texts(
                    self._bundle, make(sizes.forward_texts, seed=0), self._precision
                )
                found[kind] = self._rates(
                    lambda run, make=make, rows=rows, kind=kind: self._text_rate(
                        engine, f"{kind}_{run}", make(rows, seed=run)
                    ),
                    forward,
                )
            sql.load_rows(engine, "paths", [str(path) for path in self._paths])
            engine.query(f"SELECT encode_image('{self._paths[0]}')")  # loads the tower
            forward = limits.forward_pictures(
                self._bundle, self._paths[: sizes.forward_pictures], self._precision
            )
            found["pictures"] = self._rates(
                lambda _: sql.rate(engine, "encode_image", "paths", sizes.pictures), forward
            )
            found["memory"] = self._memory(engine)
            found["under_load"] = self._under_load(engine, fresh[sizes.searches :])
            engine.process.kill()  # the load would go on for minutes
        return found

    def _rates(self, measure: Callable[[int], float], forward: limits.Forward) -> dict[str, float]:
        """Median and spread of some runs of one measurement, and of what the engine does alone."""
        values, rates, flops = [], [], []
        for run in range(self._sizes.repeats):
            values.append(measure(run))
            rate, flop = forward.measure()
            rates.append(rate)
            flops.append(flop)
        shares = [value / rate for value, rate in zip(values, rates, strict=True)]
        self._say(
            f"    {', '.join(f'{value:,.1f}' for value in values)} rows a second; "
            f"forward {', '.join(f'{rate:,.1f}' for rate in rates)}"
        )
        return {
            "median": sql.median(values),
            "least": min(values),
            "most": max(values),
            "forward": sql.median(rates),
            "forward_flops": sql.median(flops),
            "share": sql.median(shares),
        }

    def _text_rate(self, engine: Engine, table: str, texts: list[str]) -> float:
        """Texts a second, from a table that is made first."""
        sql.load_rows(engine, table, texts)
        return sql.rate(engine, "encode_text", table, len(texts))

    def _memory(self, engine: Engine) -> dict[str, float]:
        """Memory with all five functions used by four workers each."""
        path = self._paths[0]
        arguments = {
            "encode_text": "toString(number)",
            "encode_image": f"'{path}'",
            "encode_image_or_empty": f"'{path}'",
        }
        queries = []
        for function, argument in arguments.items():
            queries += [
                f"SELECT count() FROM (SELECT {function}({argument}) AS v FROM numbers(32)) "
                "WHERE length(v) > 0"
            ] * 4
        for function in ("encode_image_bytes", "encode_image_bytes_or_empty"):
            queries += [
                f"SELECT length({function}(raw)) FROM file('{path}', 'RawBLOB', 'raw String')"
            ] * 4
        sql.at_once(engine, queries)
        time.sleep(3)  # until what is prepared beside them is there
        workers = sql.children_of(engine.process.pid)
        return {
            "workers": len(workers),
            "bytes": float(sql.proportional_bytes([*workers, self._service()])),
        }

    def _service(self) -> int:
        report = request_report(str(self._server.runtime), "status") or {}
        return int(str(report["pid"]))

    def _under_load(self, engine: Engine, texts: list[str]) -> dict[str, Any]:
        """Searches while one client embeds texts and another pictures."""
        sizes = self._sizes
        found = sql.latencies_under_load(
            engine,
            texts,
            [
                "SELECT count() FROM (SELECT encode_text('bulk ' || toString(number)) AS v "
                f"FROM numbers({sizes.load_texts})) WHERE length(v) > 0",
                "SELECT count() FROM (SELECT encode_image(concat("
                f"'{self._pictures}/', toString(number), '.jpg')) AS v "
                f"FROM numbers({sizes.load_pictures})) WHERE length(v) > 0",
            ],
        )
        return {"p50": sql.median(found), "p95": sql.percentile(found, 0.95), "seconds": found}
