"""Jobs: rows of one block on their way through a tower."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TowerName = Literal["text", "image"]


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
