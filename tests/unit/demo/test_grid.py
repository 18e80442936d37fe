from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clickhouse_clip.demo.grid import Hit, Row, draw

MODES = {"RGB": "x.jpg", "RGBA": "x.png", "L": "x.bmp", "P": "x.gif", "CMYK": "x.tiff"}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    for mode, name in MODES.items():
        Image.new(mode, (300, 40)).save(tmp_path / name)
    return [tmp_path / name for name in MODES.values()]


def hits(pictures: list[Path]) -> tuple[Hit, ...]:
    return tuple(Hit(path, path.stem, 0.5) for path in pictures)


def test_the_sheet_grows_with_rows_and_columns(pictures: list[Path]) -> None:
    words = Row("dog", None, hits(pictures))
    one = draw([words], "title", "subtitle", "footer")
    two = draw([words, Row("x", pictures[0], hits(pictures[:2]))], "title", "subtitle", "footer")
    wide = draw([Row("dog", None, hits(pictures + pictures))], "title", "subtitle", "footer")
    assert two.width == one.width < wide.width
    assert two.height > one.height == wide.height


def test_pictures_are_drawn_upright_and_transparency_is_white(tmp_path: Path) -> None:
    turned = Image.new("RGB", (80, 80), "blue")
    turned.paste("red", (0, 0, 80, 40))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (80, 80), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    rows = [
        Row("dog", None, hits([tmp_path / "turned.png"])),
        Row("dog", None, hits([tmp_path / "clear.png"])),
    ]
    sheet = draw(rows, "", "", "")
    colours = {colour for _, colour in sheet.getcolors(1 << 20) or ()}
    assert {(255, 0, 0), (0, 0, 255)} <= colours
    x = sheet.width - 180
    column = [sheet.getpixel((x, y)) for y in range(sheet.height)]
    assert column.index((0, 0, 255)) < column.index((255, 0, 0))


@pytest.mark.parametrize("text", ["", "word" * 60, "many words " * 60, "日本語 ü 🐶"])
def test_any_text_fits(pictures: list[Path], text: str) -> None:
    sheet = draw([Row(text, None, (Hit(pictures[0], text, 0.1),))], "t", "s", "f")
    # Nothing runs over the picture's right edge into the margin.
    margin = sheet.crop((sheet.width - 60, 0, sheet.width, sheet.height))
    assert margin.getcolors() == [(margin.width * margin.height, (255, 255, 255))]
