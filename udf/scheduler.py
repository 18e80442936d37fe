"""Forms batches out of what all workers ask for, and runs the towers.

Two lanes, each with a thread of its own: small jobs (a search query) never wait for a batch of bulk
ones (a table being embedded). While both run they share the processors, which the system divides
evenly, so neither starves. In a lane, one batch runs at a time, of the tower that was asked first.
Bulk texts wait in one queue per padded length: a batch is cut to its longest text, so texts of one
length cost the least together.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.engines import Tower
from clickhouse_clip.udf.tasks import Tasks

TowerName = Literal["text", "image"]
_Lane = Literal["small", "bulk"]

#: Jobs of at most this many rows take the small lane.
SMALL_ROWS = 16

#: Seconds that a batch should take: what comes meanwhile in its lane waits for it. On AVX512-BF16,
#: ViT-B/32 encodes texts equally fast from 128 tokens on; pictures gain up to batches of eight,
#: in int8 by a third.
_BATCH_SECONDS = 0.1

#: Units (tokens, pictures) in a batch: at least, at most, and before anything has been measured.
_UNITS: dict[TowerName, tuple[int, int, int]] = {"text": (128, 2048, 256), "image": (1, 64, 2)}

#: Weight of the newest batch in the measured pace.
_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class Batching:
    """How one tower's inputs become batches.

    length: tokens that a text is padded to, which is what it costs; 0 for every picture.
    collate: makes one array of some inputs: token ids to a padded array, pixels to a stack.
    """

    length: Callable[[NDArray[Any]], int]
    collate: Callable[[Sequence[NDArray[Any]]], NDArray[Any]]


class Job:
    """Some rows of one block on their way through a tower.

    `vectors`, float32 of shape (rows, dim), is filled as batches are done. Rows may be added one by
    one, as pictures are decoded; a row that cannot be is given up with `skip`.
    """

    def __init__(self, tower: TowerName, rows: int, dim: int, *, small: bool) -> None:
        self.tower: TowerName = tower
        self.small = small
        self.vectors = np.zeros((rows, dim), dtype=np.float32)
        self.skipped: dict[int, str] = {}
        self._missing = rows
        self._changed = threading.Condition()
        self._failure: Exception | None = None

    def skip(self, row: int, reason: str) -> None:
        """Give up a row."""
        with self._changed:
            self.skipped[row] = reason
            self._missing -= 1
            self._changed.notify_all()

    def fill(self, rows: Sequence[int], vectors: NDArray[np.float32]) -> None:
        """Take the vectors of some rows."""
        self.vectors[list(rows)] = vectors
        with self._changed:
            self._missing -= len(rows)
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """End the job: its vectors will never come."""
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    @property
    def failed(self) -> bool:
        """Whether the job has been ended by an error."""
        return self._failure is not None

    @property
    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._missing == 0 or self.failed

    def wait(self) -> NDArray[np.float32]:
        """All vectors, once they are there; raises what made the encoder fail."""
        with self._changed:
            self._changed.wait_for(lambda: self.done)
        if self._failure is not None:
            raise self._failure
        return self.vectors


@dataclass(slots=True)
class _Item:
    job: Job
    row: int
    value: NDArray[Any]
    length: int
    turn: int


class _Queue:
    """What waits for one tower, and how fast that has been."""

    def __init__(self, name: TowerName, batching: Batching) -> None:
        self.batching = batching
        self._least, self.most, self._units = _UNITS[name]
        self._pace = 0.0  # seconds a unit
        self.small: deque[_Item] = deque()
        self.bulk: dict[int, deque[_Item]] = {}

    def room(self, length: int) -> int:
        """Rows in a batch whose longest text is padded to `length`; 0 stands for pictures."""
        return max(1, self._units // max(length, 1))

    def measure(self, units: int, seconds: float) -> None:
        """Learn from a batch how many units the next ones should have."""
        if units < self._least:
            return  # mostly the price of a call
        pace = seconds / units
        self._pace = pace if not self._pace else self._pace + _NEWEST * (pace - self._pace)
        self._units = max(self._least, min(self.most, int(_BATCH_SECONDS / self._pace)))

    def oldest_bulk(self) -> tuple[int, int] | None:
        """Turn and length of the head that has waited longest."""
        return min(((items[0].turn, length) for length, items in self.bulk.items()), default=None)


class Scheduler:
    """Owns the encoding threads; `submit` and `Job.wait` may be called from any thread.

    Each batch is one of the `tasks` while it is encoded.
    """

    def __init__(self, batching: dict[TowerName, Batching], tasks: Tasks | None = None) -> None:
        self._tasks = tasks or Tasks()
        self._queues = {name: _Queue(name, each) for name, each in batching.items()}
        self._towers: dict[TowerName, Tower] = {}
        self._changed = threading.Condition()
        self._turn = 0
        self._waiting: dict[_Lane, int] = {"small": 0, "bulk": 0}
        for lane in self._waiting:
            threading.Thread(
                target=self._run, args=(lane,), name=f"encode-{lane}", daemon=True
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
            self._queues[name].most = most_units

    def submit(self, job: Job, rows: Sequence[int], values: Sequence[NDArray[Any]]) -> None:
        """Queue some rows of a job: token ids of shape (length,), or pixels of (h, w, 3)."""
        queue = self._queues[job.tower]
        with self._changed:
            self._turn += 1
            self._waiting["small" if job.small else "bulk"] += len(rows)
            for row, value in zip(rows, values, strict=True):
                item = _Item(job, row, value, queue.batching.length(value), self._turn)
                if job.small:
                    queue.small.append(item)
                else:
                    queue.bulk.setdefault(item.length, deque()).append(item)
            self._changed.notify_all()

    def _run(self, lane: _Lane) -> None:
        take = self._next_small if lane == "small" else self._next_bulk
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[lane])
                name, items = take()
                self._waiting[lane] -= len(items)
            items = [item for item in items if not item.job.failed]
            if items:
                self._encode(name, items)

    def _encode(self, name: TowerName, items: list[_Item]) -> None:
        rows_of: dict[Job, list[int]] = {}
        for position, item in enumerate(items):
            rows_of.setdefault(item.job, []).append(position)
        try:
            queue = self._queues[name]
            batch = queue.batching.collate([item.value for item in items])
            started = perf_counter()
            with self._tasks.task(f"encoding a batch of the {name} tower", rows_of):
                vectors = self._towers[name].encode(batch)
            longest = max(item.length for item in items)
            queue.measure(len(items) * max(longest, 1), perf_counter() - started)
            if not np.isfinite(vectors).all():
                raise ArithmeticError("the model gave embeddings that are not finite")
        except Exception as error:  # the queries fail; the service goes on
            for job in rows_of:
                job.fail(error)
            return
        for job, positions in rows_of.items():
            job.fill([items[position].row for position in positions], vectors[positions])

    def _next_small(self) -> tuple[TowerName, list[_Item]]:
        heads = [(queue.small[0].turn, name) for name, queue in self._queues.items() if queue.small]
        name = min(heads)[1]
        return name, _take_small(self._queues[name])

    def _next_bulk(self) -> tuple[TowerName, list[_Item]]:
        heads = [
            (head, name) for name, queue in self._queues.items() if (head := queue.oldest_bulk())
        ]
        (_, length), name = min(heads)
        return name, _take_bulk(self._queues[name], length)


def _take_small(queue: _Queue) -> list[_Item]:
    items: list[_Item] = []
    longest = 0
    while queue.small:
        longest = max(longest, queue.small[0].length)
        if items and len(items) >= queue.room(longest):
            break
        items.append(queue.small.popleft())
    return items


def _take_bulk(queue: _Queue, length: int) -> list[_Item]:
    """A batch of one length, topped up with shorter ones where there are not enough."""
    room = queue.room(length)
    items: list[_Item] = []
    for candidate in sorted((key for key in queue.bulk if key <= length), reverse=True):
        waiting = queue.bulk[candidate]
        while waiting and len(items) < room:
            items.append(waiting.popleft())
        if not waiting:
            del queue.bulk[candidate]
        if len(items) >= room // 2:
            break
    return items
