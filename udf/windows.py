"""Windows: some rows of a block, from raw values to embeddings.

A block of 65,000 rows is answered in windows, so that what the service holds is bounded: texts in
windows large enough to be sorted by length, pictures in small ones, so that one window is decoded
while another is encoded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.jobs import Job

Vectors = NDArray[np.float32]

#: Texts beyond this many bytes are rarely repeated, and are not worth the cache's memory.
_CACHED_TEXT_BYTES = 1024


class TextCache:
    """The embeddings of the texts used last: at most `size` of them. Belongs to one model.

    Keys are the texts as they came, so a hit also saves the tokenizer.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, texts: Sequence[bytes]) -> dict[int, Vectors]:
        """Position and embedding of each text that is known."""
        if not self._size:
            return {}
        found = {}
        with self._lock:
            for position, text in enumerate(texts):
                vector = self._vectors.get(text)
                if vector is not None:
                    self._vectors.move_to_end(text)
                    found[position] = vector
        return found

    def add(self, texts: Sequence[bytes], vectors: Vectors) -> None:
        """Remember the embeddings, shape (len(texts), dim)."""
        if not self._size:
            return
        # More than fit would only push each other out.
        texts, vectors = texts[-self._size :], vectors[-self._size :]
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                if len(text) <= _CACHED_TEXT_BYTES:
                    # A copy: a view would keep the whole window's vectors alive.
                    self._vectors[text] = vector.copy()
            while len(self._vectors) > self._size:
                self._vectors.popitem(last=False)


class TextWindow:
    """Texts being encoded: each different one once, and none that the cache knows."""

    def __init__(
        self,
        rows: Sequence[bytes],
        cache: TextCache,
        start: Callable[[list[bytes]], Job],
        finish: Callable[[Vectors], Vectors],
    ) -> None:
        self.rows = len(rows)
        positions: dict[bytes, int] = {}
        self._row_of = np.array([positions.setdefault(row, len(positions)) for row in rows])
        texts = list(positions)
        self._known = cache.find(texts)
        self._new = [text for position, text in enumerate(texts) if position not in self._known]
        self._cache = cache
        self._finish = finish
        self.hits = self.rows - len(self._new)
        self._job = start(self._new)

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._job.done

    def result(self) -> tuple[Vectors, dict[int, str]]:
        """Embeddings of shape (rows, dim), and no row without one."""
        vectors = self._finish(self._job.wait())
        self._cache.add(self._new, vectors)
        if self._known:
            unique = np.empty((len(vectors) + len(self._known), vectors.shape[1]), np.float32)
            known = np.fromiter(self._known, np.intp)
            unique[known] = list(self._known.values())
            unique[np.delete(np.arange(len(unique)), known)] = vectors
            vectors = unique
        return vectors[self._row_of], {}


class PictureWindow:
    """Pictures being decoded in the pool; each is queued for encoding when it is ready."""

    def __init__(
        self,
        rows: int,
        job: Job,
        submit: Callable[[Job, list[int], list[NDArray[np.uint8]]], None],
        finish: Callable[[Vectors], Vectors],
    ) -> None:
        self.rows = rows
        self._job = job
        self._submit = submit
        self._finish = finish

    def decode(self, row: int, decode: Callable[[], NDArray[np.uint8]]) -> None:
        """Decode one row and queue it, in the pool."""
        try:
            self._submit(self._job, [row], [decode()])
        except PictureError as error:
            self._job.skip(row, str(error))
        except Exception as error:  # a fault of ours or of the machine: the query fails
            self._job.fail(error)

    @property
    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._job.done

    def result(self) -> tuple[Vectors, dict[int, str]]:
        """Embeddings of shape (rows, dim); and for rows that have none, the reason."""
        return self._finish(self._job.wait()), self._job.skipped
