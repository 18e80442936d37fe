from __future__ import annotations

from pathlib import Path

import pytest

from clickhouse_clip.demo import BUNDLE, PICTURES
from clickhouse_clip.demo.subjects import emoji, photos
from clickhouse_clip.demo.tour import list_pictures
from clickhouse_clip.udf.bundle import load_manifest, verify
from clickhouse_clip.udf.errors import ClipError


def test_the_package_brings_a_model_and_the_pictures_that_the_tour_names() -> None:
    verify(BUNDLE, load_manifest(BUNDLE))
    subject = emoji([])
    assert subject.pictures == PICTURES.resolve()
    assert set(subject.examples) <= set(list_pictures(PICTURES))


def test_own_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert not photos(tmp_path, []).trusted
    assert photos(tmp_path, ["my dog"]).queries == ("my dog",)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="holds no pictures"):
        photos(tmp_path, [])
