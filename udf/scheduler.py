"""Forms batches out of what all workers ask for, and runs the towers.

Two lanes, each with a thread of its own: small jobs (a search query) never wait for a batch of bulk
ones (a table being embedded). While both run they share the processors, which the system divides
evenly, so neither starves. In a lane, one batch runs at a time, of the tower that was asked first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.engines import Tower
from clickhouse_clip.udf.jobs import Job, TowerName
from clickhouse_clip.udf.queues import Batching, Item, Queue
from clickhouse_clip.udf.tasks import Tasks

#: Jobs of at most this many rows take the small lane.
SMALL_ROWS = 16


class Scheduler:
    """Owns the encoding threads; `submit` and `Job.wait` may be called from any thread.

    Each batch is one of the `tasks` while it is encoded.
    """

    def __init__(self, batching: dict[TowerName, Batching], tasks: Tasks | None = None) -> None:
        self._tasks = tasks or Tasks()
        self._queues = {name: Queue(name, each) for name, each in batching.items()}
        self._towers: dict[TowerName, Tower] = {}
        self._changed = threading.Condition()
        self._turn = 0
        self._waiting = {True: 0, False: 0}  # rows, by whether their jobs are small
        self._lanes: dict[TowerName, set[bool]] = {name: set() for name in batching}
        for small, lane in ((True, "small"), (False, "bulk")):
            threading.Thread(
                target=self._run, args=(small,), name=f"encode-{lane}", daemon=True
            ).start()

    @property
    def waiting(self) -> int:
        """Rows that wait for a tower."""
        return sum(self._waiting.values())

    def add_tower(self, name: TowerName, tower: Tower, *, most_units: int | None = None) -> None:
        """Make a tower available; before the first `submit` for it.

        most_units: tokens or pictures in a batch at most, where that differs from a processor's.
        """
        self._towers[name] = tower
        if most_units is not None:
            self._queues[name].limit(most_units)

    def submit(self, job: Job, rows: Sequence[int], values: Sequence[NDArray[Any]]) -> None:
        """Queue some rows of a job: token ids of shape (length,), or pixels of (h, w, 3)."""
        queue = self._queues[job.tower]
        with self._changed:
            self._turn += 1
            self._waiting[job.small] += len(rows)
            for row, value in zip(rows, values, strict=True):
                queue.add(job, row, value, self._turn)
            self._changed.notify_all()

    def _run(self, small: bool) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[small])
                name, items = self._next(small=small)
                self._waiting[small] -= len(items)
                self._lanes[name].add(small)
                if len(self._lanes[name]) == 2:
                    # Before they meet: the first search must not wait while this is prepared.
                    self._towers[name].serve_two()
            items = [item for item in items if not item.job.failed]
            if items:
                self._encode(name, items)

    def _next(self, *, small: bool) -> tuple[TowerName, list[Item]]:
        turns = {name: queue.oldest(small=small) for name, queue in self._queues.items()}
        _, name = min((turn, name) for name, turn in turns.items() if turn is not None)
        return name, self._queues[name].take(small=small)

    def _encode(self, name: TowerName, items: list[Item]) -> None:
        queue = self._queues[name]
        rows_of: dict[Job, list[int]] = {}
        for position, item in enumerate(items):
            rows_of.setdefault(item.job, []).append(position)
        try:
            batch, units = queue.collate(items)
            started = perf_counter()
            with self._tasks.task(f"encoding a batch of the {name} tower", rows_of):
                vectors = self._towers[name].encode(batch)
            queue.measure(units, perf_counter() - started)
            if not np.isfinite(vectors).all():
                raise ArithmeticError("the model gave embeddings that are not finite")
        except Exception as error:  # the queries fail; the service goes on
            for job in rows_of:
                job.fail(error)
            return
        for job, positions in rows_of.items():
            job.fill([items[position].row for position in positions], vectors[positions])
