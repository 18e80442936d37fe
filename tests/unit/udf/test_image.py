from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from clickhouse_clip.udf.bundle import ImageSpec
from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.image import FORMATS, open_picture, preprocess

# Pillow warns about odd files; the service ignores that, and so does this test of odd files.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

LIMIT = 1_000_000
AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="no AVIF"))


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    planes = (columns * 255 // width, rows * 255 // height, (rows + columns) * 2 % 256)
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes, max_pixels: int = LIMIT) -> NDArray[np.uint8]:
    picture = open_picture(data, max_pixels=max_pixels)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def reason(data: bytes, max_pixels: int = LIMIT) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(data, max_pixels=max_pixels)
    message = str(caught.value)
    assert "BytesIO" not in message
    assert " at 0x" not in message
    assert len(message) < 200
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG", AVIF])
def test_every_format_is_read(kind: str) -> None:
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}
    pixels = opened(saved(gradient(), kind, **lossless.get(kind, {})))
    difference = np.abs(pixels.astype(int) - np.asarray(gradient())).max()
    assert difference <= (0 if kind in ("PNG", "BMP", "TIFF", "WEBP") else 60)


@pytest.mark.parametrize("kind", ["PPM", "EPS", "ICO", "TGA", "PCX", "SGI", "PDF", "JPEG2000"])
def test_other_formats_are_never_tried(kind: str) -> None:
    data = saved(gradient(32, 32), kind)
    assert "no readable JPEG, PNG" in reason(data)


def test_no_other_plugin_is_in_the_list() -> None:
    assert set(FORMATS) <= {"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"}


@pytest.mark.parametrize("data", [b"", b"\0", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>"])
def test_what_is_no_picture_says_so(data: bytes) -> None:
    assert reason(data)


def test_an_empty_value_says_so() -> None:
    assert reason(b"") == "it is empty"


# Modes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_modes_without_transparency_are_pillow_s_conversion(mode: str) -> None:
    picture = gradient().convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    assert (opened(saved(picture, kind)) == np.asarray(picture.convert("RGB"))).all()


def test_cmyk_jpegs_come_out_in_their_colours() -> None:
    data = saved(gradient().convert("CMYK"), "JPEG", quality=100)
    assert np.abs(opened(data).astype(int) - np.asarray(gradient())).max() < 40


def test_ycbcr_is_read() -> None:
    data = saved(gradient().convert("YCbCr"), "TIFF")
    assert np.abs(opened(data).astype(int) - np.asarray(gradient())).max() < 5


def test_lab_is_read() -> None:
    transform = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(gradient(), transform)
    assert lab is not None
    assert np.abs(opened(saved(lab, "TIFF")).astype(int) - np.asarray(gradient())).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_on_white(mode: str) -> None:
    picture = Image.new(mode, (3, 1), 0)
    color: Any = (100, 100, 100) if mode == "RGBA" else (100,)
    for place, alpha in enumerate((0, 128, 255)):
        picture.putpixel((place, 0), (*color, alpha))
    pixels = opened(saved(picture, "PNG"))[0]
    assert pixels[0].tolist() == [255] * 3
    assert abs(int(pixels[1][0]) - (100 * 128 + 255 * 127) // 255) <= 1
    assert pixels[2].tolist() == [100] * 3


def test_a_transparent_palette_entry_is_white() -> None:
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        pixels = opened(saved(picture, kind, transparency=1))[0]
        assert pixels.tolist() == [[10, 20, 30], [255, 255, 255]]
    several = opened(saved(picture, "PNG", transparency=b"\xff\x00"))[0]
    assert several.tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_is_white(mode: str, key: Any) -> None:
    picture = Image.new(mode, (2, 1), key)
    picture.putpixel((1, 0), 50 if mode == "L" else (50, 50, 50))
    pixels = opened(saved(picture, "PNG", transparency=key))[0]
    assert pixels.tolist() == [[255] * 3, [50] * 3]


def grey16(values: list[int]) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint16))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    data = saved(grey16([0, 128, 257, 32768, 65407, 65535]), kind)
    assert opened(data)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]


def test_sixteen_bits_high_byte_first_are_scaled_too() -> None:
    data = saved(Image.frombytes("I;16B", (2, 1), b"\x80\x00\xff\xff"), "TIFF")
    assert opened(data)[0, :, 0].tolist() == [128, 255]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, rows: bytes, *others: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(others)
        + data
        + chunk(b"IEND", b"")
    )


def test_a_transparent_value_of_sixteen_bits_is_white() -> None:
    data = png(2, 1, 16, 0, b"\0" + b"\x12\x34" + b"\x80\x00", chunk(b"tRNS", b"\x12\x34"))
    assert opened(data)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_white_are_refused_by_name(mode: str) -> None:
    assert f"mode {mode}," in reason(saved(gradient().convert("L").convert(mode), "TIFF"))


# Frames and orientation


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (opened(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", AVIF])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    upright = gradient()
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}
    pixels = opened(saved(stored, kind, exif=exif, **options.get(kind, {})))
    assert pixels.shape == (30, 40, 3)
    # Lossy formats are some values off; a wrong turn is wrong by more than a hundred.
    assert np.abs(pixels.astype(int) - np.asarray(upright)).mean() < 8


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"junk",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x02x\0\0\0\0\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_fails_no_picture(kind: str, exif: bytes) -> None:
    assert opened(saved(gradient(), kind, exif=exif)).shape == (30, 40, 3)


# Limits and damage


def test_too_many_pixels_are_refused_before_any_is_decoded() -> None:
    data = png(50_000, 50_000, 8, 2, b"no rows")
    assert reason(data) == "it has 2500000000 pixels, more than 1000000 (setting max_pixels)"
    data = png(1200, 1200, 8, 2, b"no rows")
    assert reason(data) == "it has 1200x1200 pixels, more than 1000000 (setting max_pixels)"


def test_the_limit_itself_is_allowed() -> None:
    data = saved(gradient(40, 30), "PNG")
    assert opened(data, max_pixels=1200).shape == (30, 40, 3)
    assert "40x30" in reason(data, max_pixels=1199)


def test_above_pillow_s_own_limit_only_the_setting_counts() -> None:
    data = saved(Image.new("1", (20_000, 10_000)), "PNG")
    script = (
        "import sys; from clickhouse_clip.udf.image import open_picture;"
        "picture = open_picture(sys.stdin.buffer.read(), max_pixels=10**9); print(picture.size)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", script], input=data, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == "(20000, 10000)"
    assert b"DecompressionBomb" not in done.stderr


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", AVIF])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.5, 0.1])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    assert reason(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", AVIF])
def test_damaged_files_give_a_picture_or_a_reason_and_nothing_else(kind: str) -> None:
    source = random.Random(kind)
    whole = saved(gradient(), kind)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(source.randint(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        try:
            assert opened(bytes(data)).ndim == 3
        except PictureError:
            assert reason(bytes(data))


def test_any_error_of_a_decoder_is_a_picture_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(gradient(), "PNG")
    for error in (struct.error("x"), SyntaxError("x"), MemoryError(), EOFError(), AttributeError()):
        load = Mock(side_effect=error)
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
        expected = (
            "not enough memory" if isinstance(error, MemoryError) else "PNG picture is damaged"
        )
        assert expected in reason(data)


# Preprocessing


def spec(size: tuple[int, int] = (224, 224), **changes: Any) -> ImageSpec:
    values: dict[str, Any] = {
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return ImageSpec(*size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), **(values | changes))


def noise(width: int, height: int) -> Image.Image:
    source = np.random.default_rng(width * 31 + height)
    return Image.fromarray(source.integers(0, 256, (height, width, 3), np.uint8))


def whole_resize(picture: Image.Image, size: int, resampling: Image.Resampling) -> Any:
    """What torchvision does: resize all of it, then crop."""
    width, height = picture.size
    long = int(size * max(width, height) / min(width, height))
    picture = picture.resize((size, long) if width <= height else (long, size), resampling)
    left, top = round((picture.width - size) / 2.0), round((picture.height - size) / 2.0)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 3), (224, 224), (225, 223), (640, 427), (1, 19), (20, 1), (3, 300), (777, 5)],
)
def test_pixels_equal_those_of_a_whole_resize(size: tuple[int, int]) -> None:
    expected = whole_resize(noise(*size), 224, Image.Resampling.BICUBIC)
    assert (preprocess(noise(*size), spec()) == expected).all()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1500), (1500, 1), (7, 3001), (3001, 7), (31, 20_000)])
def test_elongated_pictures_equal_it_too(size: tuple[int, int], interpolation: Any) -> None:
    resampling = Image.Resampling[interpolation.upper()]
    expected = whole_resize(noise(*size), 32, resampling)
    assert (preprocess(noise(*size), spec((32, 32), interpolation=interpolation)) == expected).all()


def test_a_line_of_pixels_takes_no_memory() -> None:
    # Resized as a whole, either would be some 10^14 bytes.
    for size in ((1, 20_000_000), (20_000_000, 1)):
        assert (preprocess(Image.new("RGB", size, "red"), spec()) == (255, 0, 0)).all()


def test_squashing_keeps_everything() -> None:
    expected = np.asarray(noise(90, 31).resize((60, 40), Image.Resampling.BILINEAR))
    squash = spec((40, 60), resize_mode="squash", interpolation="bilinear")
    assert (preprocess(noise(90, 31), squash) == expected).all()


def test_fitting_the_longest_side_fills_the_rest() -> None:
    pixels = preprocess(
        Image.new("RGB", (100, 50), "red"), spec(resize_mode="longest", fill_color=9)
    )
    assert (pixels[56:168] == (255, 0, 0)).all()
    assert (pixels[:56] == 9).all()
    assert (pixels[168:] == 9).all()


def test_fitting_the_longest_side_refuses_what_would_vanish() -> None:
    with pytest.raises(PictureError, match="too elongated for this model \\(1x5000 pixels\\)"):
        preprocess(noise(1, 5000), spec(resize_mode="longest"))


def test_pixels_are_the_caller_s_own() -> None:
    pixels = preprocess(noise(300, 200), spec())
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8
    assert pixels.shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((447, 1000), (447, 1000)),
        ((1000, 800), (1000, 800)),
        ((1001, 900), (501, 450)),
        ((2000, 3000), (500, 750)),
        ((4000, 4100), (500, 513)),
    ],
)
def test_a_large_jpeg_may_be_decoded_reduced(
    size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    data = saved(coarse.resize(size, Image.Resampling.BICUBIC), "JPEG", quality=92)
    picture = open_picture(data, max_pixels=10**8, reduce_for=spec())
    assert picture.size == decoded
    whole = preprocess(open_picture(data, max_pixels=10**8), spec())
    assert np.corrcoef(preprocess(picture, spec()).ravel(), whole.ravel())[0, 1] > 0.999


def test_what_is_no_jpeg_is_never_reduced() -> None:
    data = saved(gradient(2000, 1000), "PNG")
    assert open_picture(data, max_pixels=10**8, reduce_for=spec()).size == (2000, 1000)


def test_a_reduced_jpeg_is_still_upright_and_limited() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(gradient(2000, 1000), "JPEG", exif=exif)
    assert open_picture(data, max_pixels=10**8, reduce_for=spec()).size == (500, 1000)
    with pytest.raises(PictureError, match="2000x1000 pixels"):
        open_picture(data, max_pixels=10**6, reduce_for=spec())
