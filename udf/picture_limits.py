"""Limits on what a picture's file may cost before and beside its pixels.

A file of a few bytes can ask for gigabytes or hours: a JPEG by thousands of passes over the same
pixels, a TIFF by a tile larger than its picture, any format by millions of tiny pieces of metadata.
`image` asks here while it opens a picture. Whatever these limits refuse is no picture that a camera
or an editor writes.
"""

from __future__ import annotations

import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

from clickhouse_clip.udf.errors import PictureError

#: Pillow's parsers are loops of small reads in Python, about 1 us and 100 bytes of memory for each.
#: The most that a real file needs is some 10,000 (64 MB of PNG in chunks of 8 KB).
_MAX_READS = 1_000_000

#: Pillow joins a JPEG's EXIF segments one by one, which copies all of them each time. One is the
#: rule, of 64 KB at most.
_MAX_EXIF_SEGMENTS = 16

#: Cameras and editors write about 10; libtiff stops at 100, too. Each is a pass over all pixels.
_MAX_SCANS = 100

#: Values of one TIFF or EXIF tag that is no string of bytes: each becomes a Python number. The
#: largest real tag lists a picture's strips.
_MAX_TAG_VALUES = 1_000_000

#: TIFF's types that stay strings of bytes: BYTE, ASCII, SBYTE, UNDEFINED.
_BYTE_TYPES = frozenset({1, 2, 6, 7})

_TILE_WIDTH, _TILE_LENGTH = 322, 323


class PictureFile(BytesIO):
    """A picture's bytes as a file that can be read only so many times."""

    _reads = 0
    _exif_segments = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `BytesIO` does. Raises `PictureError` when it was called too often."""
        self._reads += 1
        data = super().read(size)
        if data.startswith(b"Exif\0\0"):
            self._exif_segments += 1
        if self._reads > _MAX_READS or self._exif_segments > _MAX_EXIF_SEGMENTS:
            raise PictureError("its metadata are in too many pieces")
        return data


#: A marker in a JPEG's compressed data: not an escaped 0xFF, not a restart, not padding.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_SOI, _EOI, _SOS = b"\xd8", b"\xd9", b"\xda"


def check_scans(data: bytes, position: int) -> None:
    """Refuse a JPEG of too many scans; at `position` the first one's compressed data begin."""
    scans = 1
    while found := _MARKER.search(data, position):
        position = found.end()
        if found[1] == _EOI:
            return
        if found[1] == _SOS:
            scans += 1
            if scans > _MAX_SCANS:
                raise PictureError(f"it is a JPEG of more than {_MAX_SCANS} scans")
        elif found[1] != _SOI:
            position += int.from_bytes(data[position : position + 2])


def check_tags(tiff: bytes) -> None:
    """Refuse a TIFF, or EXIF data, whose first directory has a tag of too many values.

    Damaged directories are not refused here: Pillow says what is wrong with them, and passes over
    a tag that cannot lie in the file.
    """
    for tag, kind, count, _ in _directory(tiff):
        if kind not in _BYTE_TYPES and _MAX_TAG_VALUES < count <= len(tiff):
            raise PictureError(f"its tag {tag} has {count} values")


def check_tiles(tiff: bytes, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles are larger than any picture may be: one is decoded as a whole."""
    if tiff.startswith(b"MM\0+"):
        # Pillow takes it for the older format, libtiff does not: they would see different tiles.
        raise PictureError("it is a big-endian BigTIFF, which is not read")
    sides = {_TILE_WIDTH: 1, _TILE_LENGTH: 1}
    for tag, _, _, value in _directory(tiff):
        if tag in sides:
            sides[tag] = max(sides[tag], value)
    width, length = sides.values()
    if width * length > max_pixels:
        raise PictureError(
            f"its tiles have {width}x{length} pixels, more than {max_pixels} (setting max_pixels)"
        )


def _directory(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, number of values, and the value or its offset, of each entry."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+"
    header, count, entry = ("8xQ", "Q", "HHQQ") if big else ("4xL", "H", "HHLL")
    try:
        (position,) = struct.unpack_from(order + header, data)
        (entries,) = struct.unpack_from(order + count, data, position)
        position += struct.calcsize(order + count)
        for _ in range(entries):
            tag, kind, values, value = struct.unpack_from(order + entry, data, position)
            if kind == 3 and values == 1:  # a short lies in the field's first two bytes
                offset = position + struct.calcsize(order + entry) - (8 if big else 4)
                (value,) = struct.unpack_from(order + "H", data, offset)
            yield tag, kind, values, value
            position += struct.calcsize(order + entry)
    except (struct.error, OverflowError):
        return


class PixelRoom:
    """Lets pictures be decoded at one time as long as they have `pixels` together.

    However many threads decode: what they take together is bounded. First come, first served, so
    that a large picture waits for the small ones before it and for no others.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels = self._free = pixels
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """A place for one picture: call what it gives, once, to wait until so many pixels fit.

        When this ends they are free again.
        """
        taken = 0

        def take(pixels: int) -> None:
            nonlocal taken
            taken = self._take(pixels)

        try:
            yield take
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()

    def _take(self, pixels: int) -> int:
        pixels = min(pixels, self._pixels)
        turn = object()
        with self._changed:
            self._turns.append(turn)
            self._changed.wait_for(lambda: self._turns[0] is turn and self._free >= pixels)
            self._turns.popleft()
            self._free -= pixels
            self._changed.notify_all()
        return pixels
