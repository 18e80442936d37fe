"""Many clients at once on one engine, every answer checked; memory and descriptors are watched.

Each client is a `chdb` connection of its own, so their queries run in parallel.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.embedded.conftest import Server
from tests.embedded.engine import Engine, QueryError
from tests.embedded.questions import Questions
from tests.processes import children_of
from tests.soak.processes import History

#: Growth of one process's resident memory from the second quarter to the last that is no leak:
#: caches of bounded size fill up, and allocators keep what they have.
_FLAT_BYTES = 24 << 20
_FLAT_SHARE = 0.1

#: Pictures that happen to be open while a sample is taken.
_FLAT_DESCRIPTORS = 8


@dataclass
class Soak:
    """What came of it. `faults` are queries that failed and should not have, or were wrong."""

    clients: int
    seconds: float = 0.0
    queries: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    expected_errors: int = 0
    faults: list[str] = field(default_factory=list)
    services: set[int] = field(default_factory=set)
    history: dict[str, History] = field(
        default_factory=lambda: {name: History() for name in ("service", "worker", "engine")}
    )

    def leaks(self) -> list[str]:
        """What grew; the engine is ClickHouse's own, and is shown only."""
        found = []
        for name in ("service", "worker"):
            before, after = self.history[name].growth("resident_bytes")
            if after > before * (1 + _FLAT_SHARE) + _FLAT_BYTES:
                found.append(f"{name}: {before / 2**20:.0f} MiB became {after / 2**20:.0f} MiB")
            before, after = self.history[name].growth("descriptors")
            if name == "service":
                # It holds a connection to each worker, and ClickHouse starts more of them.
                fewer, more = self.history["worker"].growth("processes")
                after -= max(0.0, more - fewer)
            if after > before + _FLAT_DESCRIPTORS:
                found.append(f"{name}: {before:.0f} descriptors became {after:.0f}")
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "clients": self.clients,
            "seconds": round(self.seconds, 1),
            "queries": dict(self.queries),
            "rows": self.rows,
            "expected_errors": self.expected_errors,
            "faults": self.faults,
            "services": len(self.services),
            "leaks": self.leaks(),
            "history": {name: each.to_json() for name, each in self.history.items()},
        }


def soak(server: Server, engine: Engine, *, clients: int, seconds: float) -> Soak:
    """Let `clients` ask for so many seconds; returns when the last query has been answered."""
    result = Soak(clients)
    lock = threading.Lock()
    started = time.monotonic()
    deadline = started + seconds

    def ask(number: int) -> None:
        questions = Questions(f"c{number}x", number, server.user_files)
        while time.monotonic() < deadline:
            question = questions.any()
            fault = ""
            try:
                found = engine.query(question.sql, timeout=600)
            except QueryError as error:
                if not question.error or question.error not in str(error):
                    fault = f"{question.sql}: {str(error)[:500]}"
            else:
                if question.error or not question.check(found):
                    fault = f"a wrong answer: {question.sql}"
            with lock:
                result.queries[question.kind] += 1
                result.rows += question.rows
                result.expected_errors += bool(question.error) and not fault
                if fault:
                    result.faults.append(fault)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    interval = max(0.25, min(5.0, seconds / 100))
    while any(thread.is_alive() for thread in threads):
        now = time.monotonic() - started
        report = server.status()
        if report is not None:
            result.services.add(int(report["pid"]))
            result.history["service"].add(now, [int(report["pid"])])
        result.history["worker"].add(now, children_of(engine.process.pid))
        result.history["engine"].add(now, [engine.process.pid])
        time.sleep(interval)
    result.seconds = time.monotonic() - started
    return result


def table(result: Soak) -> str:
    """The figures, to be read."""
    lines = [
        f"{result.clients} clients, {result.seconds:.0f} s, {result.queries.total():,} queries, "
        f"{result.rows:,} rows, {result.rows / result.seconds:,.0f} rows/s",
        "",
        *(f"{count:9,}  {kind}" for kind, count in sorted(result.queries.items())),
        f"{result.expected_errors:9,}  failed as they must",
        f"{len(result.faults):9,}  lost or wrong",
        f"{len(result.services):9,}  encoder services seen",
        "",
        f"{'of one process':16} {'second quarter':>16} {'last quarter':>14}",
    ]
    for name, history in result.history.items():
        for what, unit in (("resident_bytes", 2**20), ("descriptors", 1), ("threads", 1)):
            before, after = (value / unit for value in history.growth(what))
            label = "MiB" if unit > 1 else what
            lines.append(f"{name + ' ' + label:20} {before:12.1f} {after:14.1f}")
        lines.append(f"{name + ' processes':20} {history.samples[-1].processes:27}")
    return "\n".join(lines)
