"""The corpus of bad pictures: made here, the same at each run, no file shipped."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.unit.udf.bad_pictures.parts import (
    LONG,
    SHORT,
    bmp,
    gif,
    grey_tiff,
    jpeg,
    jpeg_segment,
    picture,
    png,
    png_chunk,
    saved,
    tiff,
    webp_canvas,
    whole_pictures,
)

#: What the corpus is opened with.
MAX_PIXELS = 1_000_000

_FLIPS = 80
_RANDOM = 100


@dataclass(frozen=True)
class Case:
    """One file. `expected` is what may come of it; `whole` is the file that it must look like.

    `more` is memory that it may take beside that for its pixels and its bytes.
    """

    kind: str
    name: str
    data: bytes
    expected: Literal["picture", "error", "either"]
    whole: bytes | None = None
    more: int = 0


def corpus() -> Iterator[Case]:
    """Every case."""
    files = whole_pictures()
    yield from _truncated(files)
    yield from _flipped(files)
    yield from _no_pictures(files)
    yield from _too_many_pixels()
    yield from _bombs()
    yield from _odd_but_whole()
    yield from _metadata_junk()
    yield from _obscure_decoders()


def _truncated(files: dict[str, bytes]) -> Iterator[Case]:
    for name, data in files.items():
        for percent in range(100):
            # What is cut off may be a mere end mark; then it is the whole picture, never a part.
            cut = data[: len(data) * percent // 100]
            yield Case("truncated", f"{name} at {percent} %", cut, "either", whole=data)


def _flipped(files: dict[str, bytes]) -> Iterator[Case]:
    for name, data in files.items():
        source = random.Random(name)
        for number in range(_FLIPS):
            bad = bytearray(data)
            # Half of them in the header, where sizes and offsets are.
            end = min(len(bad), 120) if number % 2 else len(bad)
            for _ in range(source.randint(1, 6)):
                bad[source.randrange(end)] ^= 1 << source.randrange(8)
            yield Case("bit flips", f"{name} {number}", bytes(bad), "either")


def _no_pictures(files: dict[str, bytes]) -> Iterator[Case]:
    source = random.Random(0)
    for number in range(_RANDOM):
        noise = source.randbytes(source.randrange(2000))
        yield Case("no picture", f"noise {number}", noise, "error")
    for length in (0, 1, 2, 16, 4096):
        yield Case("no picture", f"{length} zero bytes", bytes(length), "error")
    for name, data in files.items():
        yield Case("no picture", f"{name}: its first 12 bytes and noise", data[:12] * 50, "error")
    script = b"<script>fetch('/')</script>"
    for name, data in {
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/a"/></svg>',
        "SVG entities": b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "HTML": b"<!DOCTYPE html><html>" + script,
        "HTML behind a JPEG's mark": b"\xff\xd8\xff\xe0" + script,
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch x) run showpage\n",
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "shell": b"#!/bin/sh\ntouch x\n",
        "ELF": b"\x7fELF\2\1\1" + bytes(57),
        "ZIP": b"PK\3\4" + bytes(60),
        "pickle": b"\x80\4\x95" + b"cos\nsystem\n(S'touch x'\ntR.",
        "PPM": b"P6 2 2 255 " + bytes(12),
        "ImageMagick's own": b"push graphic-context\nimage over 0,0 0,0 'url(file:///etc/x)'\n",
    }.items():
        yield Case("no picture", name, data, "error")
    for kind in ("PPM", "EPS", "ICO", "TGA", "PCX", "SGI", "PDF", "DDS", "MSP", "ICNS"):
        image = picture(32, 32).convert("1" if kind == "MSP" else "RGB")
        yield Case("other formats", kind, saved(image, kind), "error")


def _too_many_pixels() -> Iterator[Case]:
    kind = "too many pixels"
    for side in (1001, 1500, 20_000, 65_535, 100_000, 2**31 - 1):
        for width, height in ((side, side), (1, side * side), (side * side, 1)):
            name = f"{width}x{height}"
            if max(width, height) < 2**31:
                yield Case(kind, f"PNG {name}", png(width=width, height=height), "error")
                for compression in (0, 1):
                    data = bmp(width, height, compression, b"\0\1")
                    yield Case(kind, f"BMP {name}", data, "error")
                for compression in (1, 5, 8):
                    data = grey_tiff(width=width, height=height, compression=compression)
                    yield Case(kind, f"TIFF {name}", data, "error")
            if max(width, height) < 2**16:
                yield Case(kind, f"GIF {name}", gif(width, height), "error")
                yield Case(kind, f"GIF frame {name}", gif(1, 1, frame=(width, height)), "error")
                for disposal in (1, 2, 3):
                    control = b"!\xf9\x04" + bytes((disposal << 2 | 1, 0, 0, 0, 0))
                    data = gif(width, height, control, frame=(width, height))
                    yield Case(kind, f"GIF {name}, disposal {disposal}", data, "error")
                data = bytearray(saved(picture(), "JPEG"))
                data[data.index(b"\xff\xc0") + 5 :][:4] = b""
                start = data.index(b"\xff\xc0") + 5
                data[start : start + 4] = struct.pack(">HH", height, width)
                yield Case(kind, f"JPEG {name}", bytes(data), "error")
            if max(width, height) < 2**24:
                yield Case(kind, f"WebP {name}", webp_canvas(width, height), "error")


def _bombs() -> Iterator[Case]:
    """Files that could take gigabytes or hours, in sizes that would take 100 MB or seconds."""
    kind = "bombs"
    zeros = zlib.compress(bytes(50_000_000), 9)
    small = zlib.compress(bytes(1_000_000), 9)
    for name, body in {"zTXt": b"k\0\0", "iTXt": b"k\0\1\0\0\0", "iCCP": b"k\0\0"}.items():
        chunk = png_chunk(name.encode(), body + zeros)
        expected: Literal["error", "either"] = "either" if name == "iCCP" else "error"
        yield Case(kind, f"PNG {name} of 50 MB", png(chunk), expected)
        yield Case(kind, f"PNG {name} of 50 MB behind", png(after=chunk), "either")
        chunks = [png_chunk(name.encode(), b"%d" % number + body + small) for number in range(99)]
        # Pillow keeps up to 64 MB of a PNG's texts.
        yield Case(kind, f"99 PNG {name} of 1 MB", png(*chunks), "either", more=64 << 20)
    yield Case(kind, "PNG of 50 MB in 3 pixels", _png_rows(zeros), "either")
    many = png_chunk(b"abCd") * 600_000
    # Pillow keeps a list of chunks that it does not know, until they are too many.
    yield Case(kind, "PNG of many chunks", png(many), "error", more=64 << 20)
    yield Case(kind, "PNG of many chunks behind", png(after=many), "error", more=64 << 20)
    values = (274, SHORT, 2_000_000, b"\x01\x02" * 2_000_000)
    exif = tiff(values)
    yield Case(kind, "PNG, EXIF of many values", png(png_chunk(b"eXIf", exif)), "error")
    yield Case(kind, "WebP, EXIF of many values", saved(picture(), "WEBP", exif=exif), "error")
    yield Case(kind, "TIFF, tag of many values", grey_tiff(values), "error")
    many_strips = (273, LONG, 1_500_000, bytes(6_000_000))
    yield Case(kind, "TIFF of many strips", grey_tiff(many_strips, width=1, height=1), "error")
    overlap = [(1000 + number, 1, 100_000, 8) for number in range(4000)]
    data = tiff(*overlap, data=bytes(100_000))
    yield Case(kind, "PNG, EXIF that overlaps", png(png_chunk(b"eXIf", data)), "picture")
    yield Case(kind, "TIFF, tags that overlap", data, "error")
    for side in (1008, 16_000, 46_336, 65_520, 2**31 - 16):
        tile = ((322, LONG, 1, side), (323, LONG, 1, side))
        for compression in (1, 5, 8):
            data = grey_tiff(*tile, compression=compression, data=small)
            yield Case(kind, f"TIFF {compression} with tiles of {side}", data, "error")
    segment = jpeg_segment(0xE1, b"Exif\0\0" + bytes(60_000))
    yield Case(kind, "JPEG of 300 EXIF segments", jpeg(segment * 300), "error")
    yield Case(kind, "JPEG of 100,000 EXIF segments", jpeg(segment[:14] * 100_000), "error")
    yield Case(kind, "JPEG of a million segments", jpeg(b"\xff\xe3\0\2" * 1_000_000), "error")
    yield Case(kind, "JPEG of zero bytes", jpeg(bytes(5_000_000)), "error")
    yield Case(kind, "JPEG of padding", jpeg(b"\xff" * 5_000_000), "error")
    for progressive in (True, False):
        data = saved(Image.new("L", (999, 999)), "JPEG", progressive=progressive)
        scan = data[data.rindex(b"\xff\xda") : -2]
        data = data[:-2] + scan * 5000 + b"\xff\xd9"
        # One that is not progressive is over after the scan that has all colours.
        yield Case(kind, f"JPEG of 5000 scans {progressive}", data, "error")
    comments = b"!\xfe\x01x\0" * 1_000_000
    yield Case(kind, "GIF of a million comments", gif(1, 1, comments), "error")
    yield Case(kind, "GIF of junk", gif(1, 1, b"x" * 5_000_000), "error")
    for up in (1, 255):
        delta = b"\0\2\1" + bytes((up,)) + b"\0\1"
        for width, height in ((1_000_000, 1), (1000, 1000), (1, 1_000_000)):
            for compression, bits in ((1, 8), (2, 4)):
                data = bmp(width, height, compression, delta * 20, bits)
                yield Case(kind, f"BMP {width}x{height}, delta {up}", data, "either")


def _png_rows(packed: bytes) -> bytes:
    data = png()
    start = data.index(b"IDAT") - 4
    return data[:start] + png_chunk(b"IDAT", packed) + png_chunk(b"IEND")


def _odd_but_whole() -> Iterator[Case]:
    kind = "odd but whole"
    first = picture()
    frames = [Image.new("RGB", first.size, color) for color in ("red", "lime")]
    several: dict[str, dict[str, Any]] = {
        "PNG": {},
        "TIFF": {},
        "WEBP": {"lossless": True},
        "MPO": {"quality": 90},
    }
    for name, options in several.items():
        one = "JPEG" if name == "MPO" else name
        data = saved(first, name, save_all=True, append_images=frames, **options)
        yield Case(kind, f"{name} of 3", data, "picture", whole=saved(first, one, **options))
    grey = first.convert("L")
    data = saved(grey, "GIF", save_all=True, append_images=[frame.convert("L") for frame in frames])
    yield Case(kind, "GIF of 3", data, "picture", whole=saved(grey, "GIF"))
    for name, whole in whole_pictures().items():
        for junk in (b"\0", b"PK\3\4" + bytes(40), b"<script>", bytes(3000)):
            yield Case(kind, f"{name} and {junk[:4]!r} behind it", whole + junk, "picture", whole)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        values = np.arange(1200, dtype=np.uint16).reshape(30, 40)
        image = Image.fromarray(values) if mode == "I;16" else first.convert(mode)
        yield Case(kind, f"PNG {mode}", saved(image, "PNG"), "picture")
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B"):
        if mode.startswith("I;16"):
            image = Image.frombytes(mode, (2, 2), b"\1\2\3\4\5\6\7\x08")
        elif mode == "LAB":
            image = Image.new("LAB", (4, 4), (9, 9, 9))
        else:
            image = first.convert(mode)
        yield Case(kind, f"TIFF {mode}", saved(image, "TIFF"), "picture")
    ycck = bytearray(saved(first.convert("CMYK"), "JPEG"))
    adobe = jpeg_segment(0xEE, b"Adobe\0\x64\0\0\0\0\2")
    yield Case(kind, "JPEG YCCK", bytes(ycck[:2] + adobe + ycck[2:]), "picture")
    for number in range(0, 256, 15):
        alphas = bytes(range(number, 256))
        image = first.quantize(256)
        data = saved(image, "PNG", transparency=alphas)
        yield Case(kind, f"PNG palette, transparent from {number}", data, "picture")


def _metadata_junk() -> Iterator[Case]:
    kind = "junk in metadata"
    source = random.Random(1)
    for number in range(12):
        junk = source.randbytes(source.choice((0, 1, 7, 100, 5000)))
        for name in ("JPEG", "PNG", "WEBP", "TIFF"):
            options: dict[str, Any] = {"lossless": True} if name == "WEBP" else {}
            whole = saved(picture(), name, **options)
            data = saved(picture(), name, icc_profile=junk, **options)
            yield Case(kind, f"{name}, ICC {number}", data, "picture", whole)
            if name != "TIFF":
                data = saved(picture(), name, exif=b"Exif\0\0" + junk, **options)
                yield Case(kind, f"{name}, EXIF {number}", data, "picture", whole)
    for text in ("\n" * 1000, "tiff:Orientation=" * 5000, "\0", "9" * 10_000):
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text.encode())
        yield Case(kind, f"PNG, XMP {text[:8]!r}", png(chunk), "picture")
        chunk = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text.encode()))
        yield Case(kind, f"PNG, raw profile {text[:8]!r}", png(chunk), "picture")


def _obscure_decoders() -> Iterator[Case]:
    kind = "decoders that are not used"
    for compression in (6, 32771, 32809, 34676, 34677, 34925, 0, 99, 65535):
        data = grey_tiff(compression=compression)
        yield Case(kind, f"TIFF, compression {compression}", data, "error")
    yield Case(kind, "TIFF, LZMA", saved(picture(), "TIFF", compression="lzma"), "error")
    for mode in ("I", "F"):
        image = picture().convert("L").convert(mode)
        yield Case(kind, f"TIFF of mode {mode}", saved(image, "TIFF"), "error")
    big = b"MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + struct.pack(">Q", 0)
    yield Case(kind, "big-endian BigTIFF", big, "error")
