"""What waits for one tower, and which of it makes the next batch.

Bulk texts wait in one queue per length: a batch is padded to its longest text, so texts of one
length cost the least together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from clickhouse_clip.udf.jobs import Job, TowerName

#: Seconds that a batch should take: what comes meanwhile in its lane waits for it. ViT-B/32 on
#: AVX512-BF16 is at 97 % of its best with 768 tokens and with 16 pictures.
_BATCH_SECONDS: dict[TowerName, float] = {"text": 0.2, "image": 0.4}

#: Units (tokens, pictures) that a batch may have. They are few because a shape that is new to
#: OpenVINO costs it some 5 ms.
_SIZES: dict[TowerName, tuple[int, ...]] = {
    "text": (128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    "image": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
}

#: Units before anything has been measured.
_FIRST: dict[TowerName, int] = {"text": 256, "image": 2}

#: Weight of the newest batch in the measured pace.
_NEWEST = 0.2

#: A batch grows only when the next size would take this share of its time: a pace that wavers must
#: not change it back and forth.
_GROWS = 0.9


@dataclass(frozen=True, slots=True)
class Batching:
    """How one tower's inputs become batches.

    length: tokens that a text of a small or of a bulk job is padded to at least, which is what it
        costs; 0 for every picture.
    collate: makes one array of some inputs: token ids to one padded to a length, pixels to a stack.
    """

    length: Callable[[NDArray[Any], bool], int]
    collate: Callable[[Sequence[NDArray[Any]], int], NDArray[Any]]


@dataclass(slots=True)
class Item:
    """One row of a job; `turn` counts what was submitted."""

    job: Job
    row: int
    value: NDArray[Any]
    length: int
    turn: int


class Queue:
    """What waits for one tower, and how fast that has been."""

    def __init__(self, name: TowerName, batching: Batching) -> None:
        self.batching = batching
        self._seconds = _BATCH_SECONDS[name]
        self._sizes = _SIZES[name]
        self._units = _FIRST[name]
        self._pace = 0.0  # seconds a unit
        self._small: deque[Item] = deque()
        self._bulk: dict[int, deque[Item]] = {}

    def limit(self, units: int) -> None:
        """Let a batch have so many tokens or pictures at most, where a processor's do not do."""
        sizes = list(self._sizes)
        while sizes[-1] < units:
            sizes.append(2 * sizes[-1])
        self._sizes = tuple(size for size in sizes if size <= units) or (units,)
        self._units = min(self._units, self._sizes[-1])

    def add(self, job: Job, row: int, value: NDArray[Any], turn: int) -> None:
        """Queue a row in its job's lane."""
        item = Item(job, row, value, self.batching.length(value, job.small), turn)
        if job.small:
            self._small.append(item)
        else:
            self._bulk.setdefault(item.length, deque()).append(item)

    def oldest(self, *, small: bool) -> int | None:
        """The turn of what has waited longest in a lane."""
        if small:
            return self._small[0].turn if self._small else None
        return min((items[0].turn for items in self._bulk.values()), default=None)

    def take(self, *, small: bool) -> list[Item]:
        """A batch out of a lane in which something waits."""
        return self._take_small() if small else self._take_bulk()

    def collate(self, items: list[Item]) -> tuple[NDArray[Any], int]:
        """A batch's array, and its units."""
        longest = max(item.length for item in items)
        batch = self.batching.collate([item.value for item in items], longest)
        return batch, len(items) * max(longest, 1)

    def measure(self, units: int, seconds: float) -> None:
        """Learn from a batch how many units the next ones should have."""
        if units < self._sizes[0]:
            return  # mostly the price of a call
        pace = seconds / units
        self._pace = pace if not self._pace else self._pace + _NEWEST * (pace - self._pace)
        wanted = self._seconds / self._pace
        if wanted < self._units:
            self._units = self._largest(wanted)
        else:
            self._units = max(self._units, self._largest(wanted * _GROWS))

    def _largest(self, units: float) -> int:
        return max((size for size in self._sizes if size <= units), default=self._sizes[0])

    def _room(self, length: int) -> int:
        """Rows in a batch whose longest text is padded to `length`; 0 stands for pictures."""
        return max(1, self._units // max(length, 1))

    def _take_small(self) -> list[Item]:
        items: list[Item] = []
        longest = 0
        while self._small:
            longest = max(longest, self._small[0].length)
            if items and len(items) >= self._room(longest):
                break
            items.append(self._small.popleft())
        return items

    def _take_bulk(self) -> list[Item]:
        """A batch of one length, topped up with shorter ones where there are not enough.

        Of what came together the longest goes first, so that there are shorter ones.
        """
        turn = self.oldest(small=False)
        longest = max(length for length, items in self._bulk.items() if items[0].turn == turn)
        room = self._room(longest)
        items: list[Item] = []
        for length in sorted((key for key in self._bulk if key <= longest), reverse=True):
            waiting = self._bulk[length]
            while waiting and len(items) < room:
                items.append(waiting.popleft())
            if not waiting:
                del self._bulk[length]
            if len(items) >= room // 2:
                break
        return items
