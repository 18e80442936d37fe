"""Recall and latency of the vector index, for the settings that one may choose: `make recall`.

    python -m bench.recall --rows 200000 --output bench/results
    python -m bench.recall --rows 1000000 --queries 30 --indexes laion/bf16

Loads generated shards with load-laion into the embedded engine, builds the index of indexes.sql and
others of other quantisations, and searches with sql/recall.sql. Writes recall-ROWS.json, which
bench/recall_plot.py draws.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import clickhouse_connect

from bench.shards import DIMENSIONS, write_shard
from clickhouse_clip.sql.connect import Database
from clickhouse_clip.sql.loader import Loader
from clickhouse_clip.sql.statements import read_statements, used_parameters

SHARD_ROWS = 1_000_000
#: Searches that fill the caches before any is timed.
WARM_UP = 3

CANDIDATES = (16, 32, 64, 128, 256, 512)
#: Tables and quantisations: the guide's index, the lean table's, and a smaller one.
INDEXES = ("laion/bf16", "lean/bf16", "laion/i8")
RESCORING = {"vector_search_with_rescoring": 1, "vector_search_index_fetch_multiplier": 4}


class Recall:
    """One measurement; `result` is what it came to."""

    def __init__(
        self, folder: Path, output: Path, rows: int, queries: int, indexes: list[str]
    ) -> None:
        self._folder, self._output, self._rows, self._queries = folder, output, rows, queries
        self._indexes = [tuple(index.split("/")) for index in indexes]
        # `laion` always: what is searched for and found by brute force comes from it.
        self._tables = list(dict.fromkeys(["laion", *(table for table, _ in self._indexes)]))
        self.result: dict[str, Any] = {"rows": rows, "queries": queries, "tables": {}, "found": []}

    def run(self) -> None:
        """Load the tables that the indexes need, then measure brute force and each index."""
        database = Database(f"chdb://{self._folder}/db")
        self._client = clickhouse_connect.get_client(dsn=f"chdb://{self._folder}/db")
        for statement in read_statements("schema_lean.sql"):
            self._client.command(statement, {"table": "lean", "dimensions": DIMENSIONS})
        for shard in range((self._rows - 1) // SHARD_ROWS + 1):
            rows = min(SHARD_ROWS, self._rows - shard * SHARD_ROWS)
            write_shard(self._folder / "laion", shard, rows)
            for table in self._tables:
                with self._timed(f"load into {table}"):
                    Loader(database, str(self._folder / "laion"), table).load(shard)
            shutil.rmtree(self._folder / "laion")
        self._queries_and_truth()
        self.result["sizes"] = self._sizes()
        for table, quantisation in self._indexes:
            self._build(table, quantisation)
            self._search(table, quantisation)

    def _queries_and_truth(self) -> None:
        *prepare, self._statement, self._report = read_statements("recall.sql")
        for statement in prepare:
            parameters = used_parameters(statement, {"queries": self._queries})
            self._client.command(statement, parameters)
        rows = self._client.query("SELECT query, target FROM recall_queries ORDER BY query")
        self._targets = rows.result_rows
        for table in self._tables:
            with self._timed(f"merge {table}"):
                self._client.command(f"OPTIMIZE TABLE {table} FINAL")
            name = "exact" if table == "laion" else "lean, brute force"
            for k in (10, 100):
                self._measure(name, table, k, {"use_skip_indexes": 0})

    def _build(self, table: str, quantisation: str) -> None:
        alter = f"ALTER TABLE {table}"
        self._client.command(
            f"{alter} DROP INDEX IF EXISTS image_index SETTINGS mutations_sync = 2"
        )
        self._client.command(
            f"{alter} ADD INDEX image_index image_embedding TYPE vector_similarity("
            f"'hnsw', 'cosineDistance', {DIMENSIONS}, '{quantisation}', 64, 256)"
        )
        with self._timed(f"index {table}, {quantisation}"):
            self._client.command(
                f"{alter} MATERIALIZE INDEX image_index SETTINGS mutations_sync = 2"
            )
        [[memory]] = self._client.query(
            "SELECT sum(secondary_indices_uncompressed_bytes) FROM system.parts "
            f"WHERE table = '{table}' AND active AND database = currentDatabase()"
        ).result_rows
        self.result["tables"][f"{table}, {quantisation}"] = {"bytes_per_row": memory / self._rows}

    def _search(self, table: str, quantisation: str) -> None:
        for candidates in CANDIDATES:
            for rescoring in ({}, RESCORING):
                name = f"{table}, {quantisation}, {candidates} candidates"
                name += ", rescored" if rescoring else ""
                settings = {"hnsw_candidate_list_size_for_search": candidates, **rescoring}
                for k in (10, 100):
                    self._measure(name, table, k, settings)
        self._keep()

    def _measure(self, name: str, table: str, k: int, settings: dict[str, Any]) -> None:
        sql = self._statement.replace("FROM laion", f"FROM {table}")
        found = []
        warm_up = [] if "use_skip_indexes" in settings else self._targets[:WARM_UP]
        for number, (query, target) in enumerate([*warm_up, *self._targets]):
            start = time.perf_counter()
            rows = self._client.query(
                sql, {"target": target, "k": k}, settings=settings
            ).result_rows
            milliseconds = 1e3 * (time.perf_counter() - start)
            if number >= len(warm_up):
                found.append([name, k, query, [id_ for (id_,) in rows], milliseconds])
        self._client.insert("recall_found", found)

    def _keep(self) -> None:
        report = self._client.query(self._report)
        self.result["found"] = [
            dict(zip(report.column_names, row, strict=True)) for row in report.result_rows
        ]
        # After each index: a build may take hours.
        self._output.write_text(json.dumps(self.result, indent=1) + "\n")

    def _sizes(self) -> dict[str, int]:
        """Bytes on disk of the columns of both tables, without indexes."""
        rows = self._client.query(
            "SELECT table, column, sum(column_data_compressed_bytes) FROM system.parts_columns "
            "WHERE active AND table IN ('laion', 'lean') GROUP BY table, column ORDER BY ALL"
        ).result_rows
        return {f"{table}.{column}": size for table, column, size in rows}

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.result.setdefault("seconds", {})[what] = seconds
        print(f"{what}: {seconds:.1f} s", flush=True)


def main() -> None:
    """Measure, print the table, write recall-ROWS.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--indexes", nargs="+", choices=INDEXES, default=INDEXES)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="recall-"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    output = arguments.output / f"recall-{arguments.rows}.json"
    recall = Recall(folder, output, arguments.rows, arguments.queries, arguments.indexes)
    try:
        recall.run()
    finally:
        shutil.rmtree(folder)
    for row in recall.result["found"]:
        print(
            f"{row['setting']:45} k {row['k']:3}  recall {row['recall']:.3f}  "
            f"median {row['median_ms']:7.1f} ms  p95 {row['p95_ms']:7.1f} ms  "
            f"{1 / row['of_brute_force']:6.1f} x brute force"
        )


if __name__ == "__main__":
    main()
