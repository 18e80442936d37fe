"""The tour on the real engine, with a person's folder of pictures and a model that is a toy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.toy import make_bundle


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(12):
        name = f"{'sub/' if number % 2 else ''}it's {number}.png"
        Image.new("RGB", (40, 30), (number * 20, 255 - number * 20, 99)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def tour(tmp_path: Path, pictures: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "clickhouse_clip.demo"),
            *("--pictures", pictures, "--bundle", "bundle", "--query", "a dog's"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_tour(tmp_path: Path, pictures: Path) -> None:
    make_bundle(tmp_path / "bundle")
    for _ in range(2):  # the second one replaces what the first one made
        result = tour(tmp_path, pictures)
        assert result.stderr == ""
        assert result.returncode == 0
    assert "Name: image_index" in result.stdout
    assert "Not readable as pictures: 1, such as broken.jpg" in result.stdout
    assert "encode_text('a dog\\'s')" in result.stdout
    with Image.open(tmp_path / "demo-out" / "search.png") as sheet:
        assert sheet.format == "PNG"


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    (tmp_path / "empty").mkdir()
    result = tour(tmp_path, tmp_path / "empty")
    assert result.returncode == 1
    assert result.stderr == f"demo: {tmp_path / 'empty'}: holds no pictures\n"
