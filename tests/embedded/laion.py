"""Shards in LAION-400M's formats, whose rows say which they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests import toy

#: Captions as people write them; `None` is a NULL.
CAPTIONS = (
    "Woman's \"little black\" dress, it's {row}",
    "Прогулка 散歩 ☃ 👩🏽‍🚀 {row}",
    None,
    "line\nbreak, tab\t and backslash \\' {row}",
    "",
    "50% off; -- DROP TABLE `laion` {{row}} {row}",
    "a plain one {row}",
)


def write_files(
    folder: Path,
    number: int,
    images: NDArray[Any],
    texts: NDArray[Any],
    metadata: pa.Table,
    row_group: int = 10_000,
) -> None:
    """The three files of shard `number`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"img_emb_{number}.npy", images.astype(np.float16))
    np.save(folder / f"text_emb_{number}.npy", texts.astype(np.float16))
    pq.write_table(metadata, folder / f"metadata_{number}.parquet", row_group_size=row_group)


@dataclass(frozen=True)
class Shard:
    """`rows` rows, numbered in the vectors: image [shard + 1, row // 2048, row % 2048, 0, ...]."""

    number: int
    rows: int
    row_group: int = 10_000

    def write(self, folder: Path) -> None:
        vectors = np.zeros((self.rows, toy.DIM), np.float16)
        row = np.arange(self.rows)
        # All integers up to 2048 are exact in float16.
        vectors[:, 0], vectors[:, 1], vectors[:, 2] = self.number + 1, row // 2048, row % 2048
        write_files(folder, self.number, vectors, -vectors, self.metadata(), self.row_group)

    def metadata(self) -> pa.Table:
        rows = range(self.rows)
        return pa.table(
            {
                "image_path": [f"{self.number:05d}/{row:09d}.jpg" for row in rows],
                "caption": [self.caption(row) for row in rows],
                "NSFW": [self.nsfw(row) for row in rows],
                "similarity": pa.array([self.similarity(row) for row in rows], pa.float64()),
                "LICENSE": ["?"] * self.rows,
                "url": [self.url(row) for row in rows],
                "key": [f"{row:09d}" for row in rows],
                "status": ["success"] * self.rows,
                "error_message": pa.nulls(self.rows, pa.string()),
                "width": pa.array([256] * self.rows, pa.int32()),
                "height": pa.array([192] * self.rows, pa.int32()),
                "original_width": pa.array([1024] * self.rows, pa.int32()),
                "original_height": pa.array([768] * self.rows, pa.int32()),
                "exif": ['{"Image Make": "O\'Brien"}'] * self.rows,
                "md5": [f"{row:032x}" for row in rows],
            }
        )

    def caption(self, row: int) -> str | None:
        caption = CAPTIONS[row % len(CAPTIONS)]
        return None if caption is None else caption.format(row=row)

    def url(self, row: int) -> str | None:
        return None if row % 101 == 50 else f"https://example.org/{self.number}/{row}.jpg?a='x'&b"

    def nsfw(self, row: int) -> str | None:
        return ("UNLIKELY", "UNSURE", "NSFW", None)[row % 4]

    def similarity(self, row: int) -> float | None:
        return None if row % 13 == 5 else 0.25 + row % 64 / 256

    def expected(self) -> list[list[Any]]:
        """What the table must hold: id, url, caption, NSFW, similarity, in order."""
        return [
            [
                self.number * 10_000_000 + row,
                self.url(row) or "",
                self.caption(row) or "",
                self.nsfw(row) or "",
                self.similarity(row) or 0,
            ]
            for row in range(self.rows)
        ]
