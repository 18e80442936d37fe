"""What files are made of: chunks, segments, directories; and small pictures in every format."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, features

SIZE = (40, 30)


def picture(width: int = SIZE[0], height: int = SIZE[1]) -> Image.Image:
    """Colours that differ everywhere, with some noise: a part that is missing shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width))
    planes = (columns * 215 // width + noise, rows * 215 // height + noise, 255 - noise)
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole_pictures() -> dict[str, bytes]:
    """One file of each kind that is read."""
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
    files = {
        "JPEG": saved(picture(), "JPEG", quality=90),
        "progressive JPEG": saved(picture(), "JPEG", progressive=True),
        "grey JPEG": saved(picture().convert("L"), "JPEG"),
        "CMYK JPEG": saved(picture().convert("CMYK"), "JPEG"),
        "PNG": saved(picture(), "PNG"),
        "palette PNG": saved(picture().quantize(16), "PNG", transparency=3),
        "16-bit PNG": saved(deep, "PNG"),
        "GIF": saved(picture().quantize(64), "GIF"),
        "WebP": saved(picture(), "WEBP"),
        "lossless WebP": saved(picture(), "WEBP", lossless=True),
        "TIFF": saved(picture(), "TIFF"),
        "LZW TIFF": saved(picture(), "TIFF", compression="tiff_lzw"),
        "deflated TIFF": saved(picture(), "TIFF", compression="tiff_adobe_deflate"),
        "JPEG TIFF": saved(picture(), "TIFF", compression="jpeg"),
        "BMP": saved(picture(), "BMP"),
    }
    if features.check("avif"):
        files["AVIF"] = saved(picture(), "AVIF")
    return files


def png_chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*before: bytes, after: bytes = b"", width: int = 1, height: int = 1) -> bytes:
    """An RGB PNG with the pixels of 1 x 1, whatever its header says."""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            *before,
            png_chunk(b"IDAT", zlib.compress(b"\0\1\2\3")),
            after,
            png_chunk(b"IEND"),
        )
    )


def gif(width: int, height: int, before: bytes = b"", frame: tuple[int, int] = (1, 1)) -> bytes:
    """A GIF of one grey frame; `before` are extension blocks."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    image = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\0"
    return head + before + image + b";"


def bmp(width: int, height: int, compression: int, data: bytes, bits: int = 8) -> bytes:
    palette = bytes(4 << bits)
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start)
    size = (width, height, 1, bits, compression, len(data), 0, 0, 1 << bits, 0)
    return head + struct.pack("<IiiHHIIiiII", 40, *size) + palette + data


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of one frame of 1 x 1 on a canvas of any size."""
    frame = bytes(15) + b"\0" + saved(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = ((b"VP8X", b"\2\0\0\0" + sides), (b"ANIM", bytes(6)), (b"ANMF", frame))
    body = b"".join(name + struct.pack("<I", len(data)) + data for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg(*segments: bytes) -> bytes:
    data = saved(picture(), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


SHORT, LONG = 3, 4


def tiff(*tags: tuple[int, int, int, int | bytes], data: bytes = b"") -> bytes:
    """A TIFF of these tags (number, type, count, value or bytes); `data` lies behind them."""
    start = 8 + 2 + 12 * len(tags) + 4
    entries, values = b"", data
    for number, kind, count, value in sorted(tags):
        if isinstance(value, bytes):
            value, values = start + len(values), values + value
        entries += struct.pack("<HHII", number, kind, count, value)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def grey_tiff(
    *tags: tuple[int, int, int, int | bytes],
    width: int = 16,
    height: int = 16,
    compression: int = 1,
    data: bytes = bytes(256),
) -> bytes:
    """A grey TIFF; `tags` replace what it would have."""
    of = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1, 278: height}
    every = {number: (number, LONG, 1, value) for number, value in of.items()}
    every |= {279: (279, LONG, 1, len(data)), 273: (273, LONG, 1, 0)}
    every |= {tag[0]: tag for tag in tags}
    if 322 in every:  # tiles instead of strips
        every = {number: tag for number, tag in every.items() if number not in (273, 278, 279)}
        every |= {324: (324, LONG, 1, 0), 325: (325, LONG, 1, len(data))}
    start = 8 + 2 + 12 * len(every) + 4
    for number in (273, 324):
        if number in every and number not in {tag[0] for tag in tags}:
            every[number] = (number, LONG, 1, start)
    return tiff(*every.values(), data=data)
