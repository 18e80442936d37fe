"""Measurements through SQL, on an open engine."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from pathlib import Path
from time import perf_counter

from bench.servers import Server
from tests.embedded.engine import Engine


def load_rows(engine: Engine, table: str, rows: list[str]) -> None:
    """A table of one column `value`; rows without quotes."""
    engine.query(f"CREATE TABLE {table} (value String) ENGINE = MergeTree ORDER BY tuple()")
    for first in range(0, len(rows), 5000):
        values = ", ".join(f"('{row}')" for row in rows[first : first + 5000])
        engine.query(f"INSERT INTO {table} VALUES {values}")


def rate(engine: Engine, function: str, table: str, rows: int) -> float:
    """Rows a second of a function over the first `rows` of a table."""
    started = perf_counter()
    found = engine.value(
        f"SELECT countIf(length({function}(value)) > 0) "
        f"FROM (SELECT value FROM {table} LIMIT {rows})"
    )
    seconds = perf_counter() - started
    if int(found) != rows:
        raise RuntimeError(f"{function} answered {found} of {rows} rows")
    return rows / seconds


def seconds_of(engine: Engine, sql: str) -> float:
    """How long one query takes."""
    started = perf_counter()
    engine.query(sql)
    return perf_counter() - started


def first_call(server: Server, function: str) -> float:
    """Seconds from a query until its answer where nothing of ours runs."""
    with server.open() as engine:
        return seconds_of(engine, f"SELECT length({function}('a'))")


def latencies(engine: Engine, function: str, texts: list[str]) -> list[float]:
    """Seconds of a query for each text, one after another."""
    return [seconds_of(engine, f"SELECT length({function}('{text}'))") for text in texts]


def latencies_under_load(engine: Engine, texts: list[str], load: list[str]) -> list[float]:
    """Seconds of a search query for each text while the queries in `load` run, to the end."""
    running = [engine.start(sql) for sql in load]
    time.sleep(3)  # until towers are loaded and lanes are full
    found = []
    for text in texts:
        found.append(seconds_of(engine, f"SELECT length(encode_text('{text}'))"))
        time.sleep(0.05)
    if any(each.done() for each in running):
        raise RuntimeError("the load ended before the searches did: give it more rows")
    return found


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def proportional_bytes(pids: list[int]) -> int:
    """Memory of some processes, what they share counted once (PSS, see proc(5))."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found


def at_once(engine: Engine, queries: list[str]) -> None:
    """Run some queries at the same time."""
    threads = [threading.Thread(target=engine.query, args=(sql,)) for sql in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)
