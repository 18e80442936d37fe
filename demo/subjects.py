"""What the tour may be about: the package's emoji, or a person's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clickhouse_clip.demo import PICTURES
from clickhouse_clip.demo.tour import Subject, list_pictures
from clickhouse_clip.udf.errors import ClipError


def emoji(queries: Sequence[str]) -> Subject:
    """The pictures of the package; `queries` replace the usual ones, if there are any."""
    return Subject(
        pictures=_with_pictures(PICTURES),
        trusted=True,
        queries=tuple(queries)
        or (
            "dog",
            "red fruit",
            "something to eat with",
            "happy face",
            "vehicle that flies",
            "sea animal",
            "musical instrument",
            "weather",
        ),
        examples=("dog-face.webp", "guitar.webp", "rocket.webp"),
        labels=(
            "animal",
            "food",
            "vehicle",
            "face",
            "plant",
            "musical instrument",
            "sport",
            "flag",
        ),
        prompt="",
    )


def photos(folder: Path, queries: Sequence[str]) -> Subject:
    """A person's pictures in `folder` and below, of which nobody knows what they show."""
    return Subject(
        pictures=_with_pictures(folder),
        trusted=False,
        queries=tuple(queries)
        or (
            "a photo of a dog",
            "people smiling",
            "food on a table",
            "the sea",
            "a city at night",
            "a car",
            "flowers",
            "snow",
        ),
        examples=(),
        labels=(
            "people",
            "an animal",
            "food",
            "a building",
            "a landscape",
            "a vehicle",
            "a document",
        ),
        prompt="a photo of ",
    )


def _with_pictures(folder: Path) -> Path:
    # Resolved, as the encoder resolves the pictures that it is asked for.
    folder = folder.resolve()
    if not list_pictures(folder):
        raise ClipError(f"{folder}: holds no pictures")
    return folder
