"""The encoder: a bundle's towers behind one scheduler, from rows to windows of embeddings.

Towers, tokenizer and the libraries that they need are loaded when a function first asks for them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf import cpus
from clickhouse_clip.udf.bundle import TOKENIZER, TOWER_FILES, Manifest
from clickhouse_clip.udf.catalog import SqlFunction
from clickhouse_clip.udf.engines import choice
from clickhouse_clip.udf.errors import BundleError, PictureError, ProtocolError
from clickhouse_clip.udf.jobs import Job, TowerName
from clickhouse_clip.udf.native import Oversized
from clickhouse_clip.udf.picture_limits import PixelRoom
from clickhouse_clip.udf.queues import Batching
from clickhouse_clip.udf.scheduler import SMALL_ROWS, Scheduler
from clickhouse_clip.udf.settings import Settings
from clickhouse_clip.udf.sources import Sources
from clickhouse_clip.udf.tasks import Tasks
from clickhouse_clip.udf.text import Tokenizer, batch, padded_length
from clickhouse_clip.udf.windows import PictureWindow, TextCache, TextWindow, Vectors

_log = logging.getLogger(__name__)

#: Of the pictures being decoded at one time, where that is more than one picture may have. A
#: picture of 4 million takes some 70 MB at most.
_PIXELS_PER_THREAD = 4 << 20

#: Texts of small jobs are padded to multiples of this: a shape that is new to OpenVINO costs it
#: some 5 ms, and so short a batch takes as long with some tokens more.
_SMALL_LENGTH_STEP = 8


class Counters:
    """What the service has done since it started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._totals = {"cache_hits": 0, "bad_pictures": 0, "failed_blocks": 0}

    def add_rows(self, function: str, rows: int) -> None:
        """Count rows that a function was asked for."""
        with self._lock:
            self._rows[function] = self._rows.get(function, 0) + rows

    def add(self, **counts: int) -> None:
        """Count cache hits, bad pictures or failed blocks."""
        with self._lock:
            for name, count in counts.items():
                self._totals[name] += count

    def report(self) -> dict[str, Any]:
        """All the counts."""
        with self._lock:
            return {"rows": dict(self._rows), **self._totals}


class Encoder:
    """Encodes rows with the towers of one bundle; every method may be called from any thread.

    `device_lost` is called when the GPU has failed, so that nothing works on it in this process.
    """

    def __init__(
        self,
        settings: Settings,
        manifest: Manifest,
        device_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.manifest = manifest
        self.counters = Counters()
        self.device = self.precision = "not loaded"
        self._unused_gpu = ""
        self._device_lost = device_lost
        self._threads = settings.threads or cpus.usable_cpus()
        self._cache = TextCache(settings.cache_texts)
        self._loading = {"text": threading.Lock(), "image": threading.Lock()}
        self.tasks = Tasks()
        self.sources: dict[TowerName, Sources] = {}
        self._tokenizer: Tokenizer | None = None
        self._length_step = 1
        self._scheduler = Scheduler(
            {
                "text": Batching(self._padded, partial(batch, spec=manifest.text)),
                "image": Batching(lambda *_: 0, lambda pixels, _: np.stack(pixels)),
            },
            self.tasks,
        )
        self._pool = ThreadPoolExecutor(self._threads, "decode", _step_back)
        self._room = PixelRoom(max(settings.max_pixels, self._threads * _PIXELS_PER_THREAD))

    @property
    def waiting(self) -> int:
        """Rows that wait for a tower."""
        return self._scheduler.waiting

    @property
    def loaded(self) -> list[str]:
        """Names of the towers that are loaded."""
        return [name for name in self._loading if name in self.sources]

    def load(self, name: TowerName) -> None:
        """Load a tower unless it is loaded. Raises `BundleError` with the reason why it cannot."""
        with self._loading[name]:
            if name in self.sources:
                return
            started = perf_counter()
            # Weights stay mapped: what is written into their file now would be encoded with.
            files = (*TOWER_FILES[name], TOKENIZER)
            sources = Sources(self.settings.bundle / file for file in files)
            if name == "text":
                self._tokenizer = Tokenizer.load(self.settings.bundle, self.manifest)
            try:
                placed = choice.load(
                    self.settings,
                    self.manifest,
                    name,
                    threads=self._threads,
                    lost=self._device_lost,
                )
            except MemoryError as error:
                raise BundleError(
                    f"the {name} tower of {self.settings.bundle} does not fit into the memory "
                    "that the encoder service may use"
                ) from error
            self._scheduler.add_tower(name, placed.tower, most_units=placed.batch_units)
            self._length_step = placed.length_step
            self.device, self.precision = placed.device, placed.precision
            self._unused_gpu = placed.unused_gpu
            self.sources[name] = sources
            seconds = perf_counter() - started
            _log.info("loaded the %s tower on %s in %.2f s", name, placed.device, seconds)

    def start(
        self, function: SqlFunction, rows: Sequence[bytes | Oversized], block_rows: int
    ) -> TextWindow | PictureWindow:
        """Begin to encode some rows of a block of `block_rows`."""
        small = block_rows <= SMALL_ROWS
        self.counters.add_rows(function.name, len(rows))
        if function.tower == "text":
            texts = [_text(row) for row in rows]
            window = TextWindow(
                texts, self._cache, partial(self._encode_texts, small), self._finish
            )
            self.counters.add(cache_hits=window.hits)
            return window
        job = Job("image", len(rows), self.manifest.embedding_dim, small=small)
        pictures = PictureWindow(len(rows), job, self._scheduler.submit, self._finish)
        for position, row in enumerate(rows):
            decode = partial(pictures.decode, position, partial(self._pixels, function, row))
            self._pool.submit(self.tasks.run, "decoding a picture", job, decode)
        return pictures

    def _padded(self, tokens: NDArray[np.int64], small: bool) -> int:
        step = _SMALL_LENGTH_STEP if small else self._length_step
        return padded_length(len(tokens), self.manifest.text, step)

    def _encode_texts(self, small: bool, texts: list[bytes]) -> Job:
        assert self._tokenizer is not None  # the tower was loaded before
        job = Job("text", len(texts), self.manifest.embedding_dim, small=small)
        self._scheduler.submit(job, range(len(texts)), self._tokenizer.encode(texts))
        return job

    def _pixels(self, function: SqlFunction, row: bytes | Oversized) -> NDArray[np.uint8]:
        from clickhouse_clip.udf.image import open_picture, preprocess
        from clickhouse_clip.udf.picture_files import read_picture

        settings = self.settings
        if isinstance(row, Oversized):
            raise PictureError(
                f"{row.length} bytes are more than the {settings.max_bytes} that setting max_bytes "
                "allows"
            )
        if function.source == "path":
            row = read_picture(row, settings.image_roots, max_bytes=settings.max_bytes)
        spec = self.manifest.image
        with self._room.place() as take_room:
            picture = open_picture(
                row,
                max_pixels=settings.max_pixels,
                reduce_for=spec if settings.reduced_decoding else None,
                take_room=partial(self._wait, take_room),
            )
            return preprocess(picture, spec)

    def _wait(self, take_room: Callable[[int], None], pixels: int) -> None:
        # The pictures that are waited for are watched themselves.
        with self.tasks.paused():
            take_room(pixels)

    def _finish(self, vectors: Vectors) -> Vectors:
        """L2-normalise, where the settings say so."""
        if not self.settings.normalize:
            return vectors
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        norms[norms == 0] = 1  # a row without an embedding is all zero, and stays so
        vectors /= norms
        return vectors

    def report(self) -> dict[str, Any]:
        """What `clip-encoder status` shows of the encoder."""
        return {
            "model": self.manifest.model,
            "weights": self.manifest.weights,
            "bundle": os.fspath(self.settings.bundle),
            "identity": self.manifest.identity,
            "towers": self.loaded,
            "device": self.device,
            "unused_gpu": self._unused_gpu,
            "precision": self.precision,
            "threads": self._threads,
            **self.counters.report(),
            "waiting": self.waiting,
        }


def _step_back() -> None:
    """Let decoding use what encoding leaves of the processors: a search must not wait for it."""
    thread = threading.get_native_id()
    # Only root may go the other way, where the server itself runs at a lower priority.
    niceness = max(5, os.getpriority(os.PRIO_PROCESS, thread))
    os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _text(row: bytes | Oversized) -> bytes:
    if isinstance(row, Oversized):
        raise ProtocolError(f"a text of {row.length} bytes; shorten it with left()")
    return row
