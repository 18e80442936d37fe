"""Shards in LAION-400M's formats with made-up content: vectors in clusters, not white noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

DIMENSIONS = 512
CHUNK = 50_000

#: The content varies in this many directions; estimates for CLIP's embeddings are of this order.
LATENT = 96
TOPICS, SUBJECTS = 300, 40

Vectors = NDArray[np.float32]


class World:
    """What pictures are about: subjects within topics, of very unequal frequency."""

    def __init__(self, seed: int = 1) -> None:
        random = np.random.default_rng(seed)
        topics = random.normal(size=(TOPICS, 1, LATENT))
        subjects = random.normal(size=(TOPICS, SUBJECTS, LATENT))
        self._centres = (topics + 0.7 * subjects).reshape(-1, LATENT).astype(np.float32)
        frequency = 1 / np.arange(1, len(self._centres) + 1) ** 0.7
        self._frequency = random.permutation(frequency / frequency.sum())
        self._axes = random.normal(size=(LATENT, DIMENSIONS)).astype(np.float32) / LATENT**0.5
        # Pictures and captions lie in two cones apart from each other, as CLIP's do.
        self._cones = random.normal(size=(2, DIMENSIONS)).astype(np.float32)

    def draw(self, count: int, seed: int) -> tuple[Vectors, Vectors]:
        """Normalised embeddings of `count` pictures and of their captions."""
        random = np.random.default_rng(seed)
        subject = random.choice(len(self._centres), count, p=self._frequency)
        content = self._centres[subject] + 0.6 * random.standard_normal((count, LATENT), np.float32)
        said = content + 0.5 * random.standard_normal((count, LATENT), np.float32)
        images, texts = (
            inner @ self._axes
            + cone
            + 0.25 * random.standard_normal((count, DIMENSIONS), np.float32)
            for inner, cone in zip((content, said), self._cones, strict=True)
        )
        return normalised(images), normalised(texts)


def normalised(vectors: Vectors) -> Vectors:
    """Each row with length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_shard(folder: Path, number: int, rows: int) -> None:
    """The three files of a shard; identical for equal numbers and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World()
    images, texts = (
        np.lib.format.open_memmap(
            folder / f"{name}_emb_{number}.npy", "w+", np.float16, (rows, DIMENSIONS)
        )
        for name in ("img", "text")
    )
    writer = None
    for start in range(0, rows, CHUNK):
        stop = min(rows, start + CHUNK)
        image, text = world.draw(stop - start, seed=number * 10_000_000 + start + 7)
        images[start:stop], texts[start:stop] = image, text
        table = _metadata(number, range(start, stop), (image * text).sum(1))
        writer = writer or pq.ParquetWriter(folder / f"metadata_{number}.parquet", table.schema)
        writer.write_table(table, row_group_size=10_000)
    if writer is not None:
        writer.close()


def _metadata(number: int, rows: range, similarity: Vectors) -> pa.Table:
    def texts(form: str) -> Iterator[str]:
        return (form.format(number=number, row=row, hash=row * 2654435761 % 2**32) for row in rows)

    count = len(rows)
    return pa.table(
        {
            "image_path": list(texts("{number:05d}/{row:09d}.jpg")),
            "caption": list(texts('Woman\'s "no. {row}" dress, {hash:x} in {number} colours')),
            "NSFW": ["UNLIKELY"] * count,
            "similarity": similarity.astype(np.float64),
            "LICENSE": ["?"] * count,
            "url": list(texts("https://example.org/media/{hash:08x}/{row}-1024x768.jpg?v={hash}")),
            "key": list(texts("{row:09d}")),
            "status": ["success"] * count,
            "error_message": pa.nulls(count, pa.string()),
            "width": np.full(count, 256, np.int32),
            "height": np.full(count, 192, np.int32),
            "original_width": np.full(count, 1024, np.int32),
            "original_height": np.full(count, 768, np.int32),
            "exif": ["{}"] * count,
            "md5": list(texts("{row:032x}")),
        }
    )
