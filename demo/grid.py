"""Draws what searches found: a query in each row, its pictures beside it, best one first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

_SCALE = 2  # drawn at twice the size and shown on any screen without stairs
_CELL, _GAP, _MARGIN = 118 * _SCALE, 14 * _SCALE, 32 * _SCALE
_CAPTION = 38 * _SCALE
_LABEL = 190 * _SCALE
_HEAD, _FOOT = 92 * _SCALE, 44 * _SCALE
_RADIUS = 12 * _SCALE

_PAPER, _INK, _SOFT, _LINE, _ACCENT = "#ffffff", "#16181d", "#737987", "#e3e6eb", "#2f6fde"


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that was found: `score` is its cosine similarity to the query."""

    picture: Path
    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Row:
    """A query, by words or by `picture`, and what it found."""

    query: str
    picture: Path | None
    hits: tuple[Hit, ...]


def draw(rows: Sequence[Row], title: str, subtitle: str, footer: str) -> Image.Image:
    """The whole sheet; all rows are as wide as the one with the most pictures."""
    columns = max(len(row.hits) for row in rows)
    width = 2 * _MARGIN + _LABEL + columns * (_CELL + _GAP)
    pitch = _CELL + _CAPTION + _GAP
    sheet = Image.new("RGB", (width, _HEAD + len(rows) * pitch + _FOOT), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, 26 * _SCALE), title, _INK, _font(26))
    pen.text((_MARGIN, 60 * _SCALE), subtitle, _SOFT, _font(14))
    for number, row in enumerate(rows):
        top = _HEAD + number * pitch
        if number:
            line = top - _GAP // 2 - 2 * _SCALE
            pen.line((_MARGIN, line, width - _MARGIN, line), _LINE, _SCALE)
        _draw_query(sheet, row, top)
        for column, hit in enumerate(row.hits):
            left = _MARGIN + _LABEL + _GAP + column * (_CELL + _GAP)
            _draw_picture(sheet, hit.picture, left, top, _CELL)
            _draw_caption(pen, hit, left, top + _CELL)
    pen.text((_MARGIN, sheet.height - _FOOT + 8 * _SCALE), footer, _SOFT, _font(12))
    return sheet


def _draw_query(sheet: Image.Image, row: Row, top: int) -> None:
    pen = ImageDraw.Draw(sheet)
    if row.picture is not None:
        _draw_picture(sheet, row.picture, _MARGIN, top, _CELL, outline=_ACCENT)
        pen.text(
            (_MARGIN, top + _CELL + 6 * _SCALE),
            _fit(pen, row.query, _font(12), _LABEL - _GAP),
            _ACCENT,
            _font(12),
        )
        return
    lines = _wrap(pen, row.query, _font(18), _LABEL - _GAP)
    spacing = 24 * _SCALE
    start = top + _CELL // 2 - len(lines) * spacing // 2
    for number, line in enumerate(lines):
        pen.text((_MARGIN, start + number * spacing), line, _INK, _font(18))


def _draw_caption(pen: ImageDraw.ImageDraw, hit: Hit, left: int, top: int) -> None:
    middle = left + _CELL // 2
    name = _fit(pen, hit.name, _font(12), _CELL)
    pen.text((middle, top + 5 * _SCALE), name, _INK, _font(12), anchor="ma")
    pen.text((middle, top + 21 * _SCALE), f"{hit.score:.2f}", _SOFT, _font(11), anchor="ma")


def _draw_picture(
    sheet: Image.Image, path: Path, left: int, top: int, size: int, outline: str = _LINE
) -> None:
    inner = size - 12 * _SCALE
    with Image.open(path) as file:
        # A JPEG of a camera is decoded at about the size that is wanted, not at 50 megapixels.
        file.draft("RGB", (inner, inner))
        picture = ImageOps.contain(ImageOps.exif_transpose(file).convert("RGBA"), (inner, inner))
    card = Image.new("RGBA", (size, size), _PAPER)
    corner = ((size - picture.width) // 2, (size - picture.height) // 2)
    card.alpha_composite(picture, corner)
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size - 1, size - 1), _RADIUS, 255)
    sheet.paste(card, (left, top), mask)
    ImageDraw.Draw(sheet).rounded_rectangle(
        (left, top, left + size - 1, top + size - 1), _RADIUS, outline=outline, width=_SCALE
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)


def _fit(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """`text`, its end cut off where it is wider than `width`."""
    if pen.textlength(text, font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text.rstrip(' -')}…"


def _wrap(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> list[str]:
    """`text` in lines of whole words, four at most."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pen.textlength(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_fit(pen, line, font, width) for line in lines[:4]]
