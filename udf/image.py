"""Pictures: a file's bytes to RGB, and RGB to the pixels that the image tower takes.

Nothing here reads a file or knows a path. Whatever Pillow makes of hostile bytes ends as one
`PictureError` with a reason of a few words; what a file may cost is in `picture_limits`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from clickhouse_clip.udf.bundle import ImageSpec
from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.picture_limits import PictureFile, check_scans, check_tags, check_tiles
from clickhouse_clip.udf.resampling import resample, taps

#: The only formats that are tried: decoders that are fuzzed, and no format that runs a program
#: (EPS starts Ghostscript) or reads other files.
FORMATS: tuple[str, ...] = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    *(("AVIF",) if features.check("avif") else ()),
)

#: What a TIFF may be compressed with: what libtiff's own tools write today. Not among them: the
#: decoders of ThunderScan, SGI's LogLuv and old-style JPEG; LZMA, whose files ask for any memory.
TIFF_COMPRESSIONS: frozenset[str] = frozenset(
    {
        "raw",
        "packbits",
        "tiff_lzw",
        "tiff_deflate",
        "tiff_adobe_deflate",
        "tiff_ccitt",
        "group3",
        "group4",
        "jpeg",
        "webp",
        "zstd",
    }
)

#: Pillow decodes these in Python, at 10 million pixels a second while all other threads wait.
_RLE_PIXELS = 1 << 24

# Pillow warns about what it reads all the same (odd EXIF, odd TIFF tags): nobody is there to see.
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION = 0x0112
#: EXIF orientation to what undoes it, as in `PIL.ImageOps.exif_transpose`.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

#: With twice the model's pixels left to resize, the embedding of a 4000 x 3000 picture has a cosine
#: of 0.9999 to that of the whole (ViT-B/32; smooth pictures and hard edges tried), and decoding
#: takes a half to a quarter of the time.
_REDUCED = 2

_WHITE = (255, 255, 255)
_STRIP_ROWS = 256

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
#: An axis enlarged to more pixels than this is resampled only where the crop keeps it: 1 x 5000
#: pixels would become 224 x 1,120,000, which is 1 GB.
_LONG_AXIS = 4096


def open_picture(
    data: bytes,
    *,
    max_pixels: int,
    reduce_for: ImageSpec | None = None,
    take_room: Callable[[int], None] | None = None,
) -> Image.Image:
    """Decode a picture's bytes to mode RGB: upright, on white where it is transparent.

    Of several frames or pages it takes the first. 16-bit grey is scaled to 8 bits. With
    `reduce_for`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still `_REDUCED` times
    what the model takes. `take_room` is called once, before any pixel is decoded, with the number
    of pixels that will be in memory. Raises `PictureError` for anything else than a whole picture
    in one of `FORMATS`, and for more than `max_pixels`, before any pixel is decoded.
    """
    if not data:
        raise PictureError("it is empty")
    # Pillow's own limit is a global, which it asks before it makes room for a WebP's canvas or a
    # GIF's background. It refuses twice as many; the warning that it gives first is ignored above.
    Image.MAX_IMAGE_PIXELS = max_pixels
    kind = ""
    try:
        if data.startswith((b"II", b"MM")):
            check_tags(data)
            check_tiles(data, max_pixels)
        file = PictureFile(data)
        with Image.open(file, formats=FORMATS) as picture:
            kind = f" {picture.format}"
            _check(picture, data, file.tell(), max_pixels)
            pixels = picture.width * picture.height
            if reduce_for is not None:
                picture.draft(None, (_REDUCED * reduce_for.width, _REDUCED * reduce_for.height))
                if not picture.info.get("progressive"):  # all of it is held until its last scan
                    pixels = picture.width * picture.height
            if take_room is not None:
                take_room(pixels)
            picture.load()
            turn = _UPRIGHT.get(_orientation(picture))
            rgb = _to_rgb(picture)
            return rgb if turn is None else rgb.transpose(turn)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise PictureError(
            f"it has {count[0] if count else 'too many'} pixels,"
            f" more than {max_pixels} (setting max_pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise PictureError(f"it is no readable {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise PictureError(f"there is not enough memory to decode the{kind} picture") from error
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error,
        # EOFError, IndexError, AttributeError and more, depending on where a file is broken.
        what = "truncated" if "truncated" in str(error) else "damaged"
        raise PictureError(f"the{kind} picture is {what}") from error


def _check(picture: ImageFile.ImageFile, data: bytes, position: int, max_pixels: int) -> None:
    """Refuse what would cost too much to decode; `position` is where its header ends."""
    pixels = picture.width * picture.height
    if pixels > max_pixels:
        raise PictureError(
            f"it has {picture.width}x{picture.height} pixels,"
            f" more than {max_pixels} (setting max_pixels)"
        )
    if isinstance(picture, JpegImageFile):
        check_scans(data, position)
    codec = picture.tile[0].codec_name if picture.tile else ""
    if codec == "bmp_rle" and pixels > _RLE_PIXELS:
        raise PictureError(f"it is run-length encoded and has more than {_RLE_PIXELS} pixels")
    compression = picture.info.get("compression")
    if picture.format == "TIFF" and compression not in TIFF_COMPRESSIONS:
        raise PictureError(f"its compression, {compression}, is not read")


def _orientation(picture: Image.Image) -> Any:
    # After load(): PNG may keep EXIF behind the pixels, and TIFF turns itself while loading.
    exif = picture.info.get("exif")
    if isinstance(exif, bytes):
        check_tags(exif.removeprefix(b"Exif\0\0"))
    try:
        return picture.getexif().get(_ORIENTATION)
    except Exception:  # A picture with broken EXIF is still a picture.
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I;16"):
        return _grey16_to_rgb(picture)
    if mode in ("La", "RGBa"):
        picture = picture.convert("LA" if mode == "La" else "RGBA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGB", picture.size, _WHITE)
        canvas.paste(picture, mask=picture.getchannel("A"))
        return canvas
    if mode == "LAB":
        return _lab_to_rgb(picture)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return picture.convert("RGB")
    # Integers of 32 bits and floats ("I", "F"): nothing in the file says which value is white.
    raise PictureError(
        f"its pixels are of Pillow's mode {mode}, whose brightness is not defined;"
        " convert it to 8 or 16 bits per channel"
    )


def _grey16_to_rgb(picture: Image.Image) -> Image.Image:
    """Grey 0..65535 to 0..255 by 257, rounded (Pillow's own conversion clips at 255)."""
    grey = np.asarray(picture)
    clear = picture.info.get("transparency")
    result = np.empty(grey.shape, np.uint8)
    for start in range(0, len(grey), _STRIP_ROWS):
        strip = grey[start : start + _STRIP_ROWS].astype(np.uint32)
        if isinstance(clear, int):
            strip[strip == clear] = 65535
        result[start : start + _STRIP_ROWS] = (strip + 128) // 257
    return Image.fromarray(result).convert("RGB")


def _lab_to_rgb(picture: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    if converted is None:
        raise PictureError("its LAB colours cannot be converted")
    return converted


def preprocess(picture: Image.Image, spec: ImageSpec) -> NDArray[np.uint8]:
    """Resize and crop an RGB picture to uint8 pixels of shape (height, width, 3).

    The bytes are those of `open_clip.transform.image_transform(is_train=False)` before its
    normalisation; the exported image tower normalises. Raises `PictureError` for a picture so
    elongated that the model's way of resizing leaves nothing of it.
    """
    width, height = picture.size
    resampling = _RESAMPLING[spec.interpolation]
    if spec.resize_mode == "squash":
        size = (spec.width, spec.height)
    elif spec.resize_mode == "longest":
        size = _resized(picture, max(height / spec.height, width / spec.width))
    elif spec.height == spec.width:
        # torchvision.transforms.functional._compute_resized_output_size
        long = int(spec.width * max(width, height) / min(width, height))
        size = (spec.width, long) if width <= height else (long, spec.width)
    else:
        size = _resized(picture, min(height / spec.height, width / spec.width))
        # open_clip.transform.image_transform leaves this one case at ResizeKeepRatio's default.
        resampling = Image.Resampling.BICUBIC
    return _resize_and_crop(picture, size, spec, resampling)


def _resized(picture: Image.Image, ratio: float) -> tuple[int, int]:
    # open_clip.transform.ResizeKeepRatio.get_params
    return round(picture.width / ratio), round(picture.height / ratio)


def _resize_and_crop(
    picture: Image.Image, size: tuple[int, int], spec: ImageSpec, resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """Resize to `size` (width, height), then cut or fill about the centre to the model's size."""
    if min(size) < 1:
        raise PictureError(
            f"it is too elongated for this model ({picture.width}x{picture.height} pixels)"
        )
    left, kept_width, pad_left = _centre(size[0], spec.width)
    top, kept_height, pad_top = _centre(size[1], spec.height)
    # Pillow resamples columns, rounds to 8 bits, then resamples rows, when it enlarges; when it
    # shrinks, the order depends on the sizes and on its version, so that is left to it as a whole.
    if size[0] > max(_LONG_AXIS, picture.width):
        columns = taps(picture.width, size[0], left, kept_width, resampling)
        picture = picture.crop((columns.low, 0, columns.high, picture.height))
        picture = Image.fromarray(resample(np.asarray(picture), columns, axis=1))
        left, size = 0, (kept_width, size[1])
    if size[1] > max(_LONG_AXIS, picture.height):
        rows = taps(picture.height, size[1], top, kept_height, resampling)
        picture = picture.crop((0, rows.low, picture.width, rows.high))
        picture = picture.resize((size[0], picture.height), resampling)
        picture = Image.fromarray(resample(np.asarray(picture), rows, axis=0))
        top = 0
    else:
        picture = picture.resize(size, resampling)
    picture = picture.crop((left, top, left + kept_width, top + kept_height))
    if picture.size != (spec.width, spec.height):
        # torchvision's CenterCrop fills with black; only "longest" has a colour to choose.
        fill = spec.fill_color if spec.resize_mode == "longest" else 0
        canvas = Image.new("RGB", (spec.width, spec.height), (fill, fill, fill))
        canvas.paste(picture, (pad_left, pad_top))
        picture = canvas
    return np.array(picture)


def _centre(length: int, wanted: int) -> tuple[int, int, int]:
    """Where a centred crop starts, how much it keeps, and how much is filled before it."""
    # torchvision.transforms.functional.center_crop; round() is to even, as there.
    start = round((length - wanted) / 2.0) if length > wanted else 0
    return start, min(length, wanted), max(wanted - length, 0) // 2
