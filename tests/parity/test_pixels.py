from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clickhouse_clip.udf.bundle import ImageSpec
from clickhouse_clip.udf.image import open_picture, preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

SIZES = [
    *[(1, 1), (1, 2), (2, 1), (3, 2), (1, 5000), (5000, 1), (4000, 3000), (3000, 4000)],
    *[(223, 224), (224, 224), (225, 224), (224, 500), (448, 448), (447, 449), (640, 427)],
    *[(2, 300), (300, 2), (17, 1999), (1999, 17), (300, 7000), (7000, 300), (333, 20_000)],
]


def noise(width: int, height: int) -> Image.Image:
    source = np.random.default_rng([width, height])
    return Image.fromarray(source.integers(0, 256, (height, width, 3), np.uint8))


def compare(picture: Image.Image, reference: Image.Image | None = None, **config: Any) -> None:
    settings = {"size": 224, "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    settings |= config
    transform = image_transform_v2(PreprocessCfg(mean=MEAN, std=STD, **settings), is_train=False)
    expected = transform(picture if reference is None else reference)
    size = settings.pop("size")
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = preprocess(picture, ImageSpec(height, width, MEAN, STD, **settings))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    # The operations of ToTensor and Normalize, which the exported tower does on these pixels.
    actual = (torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255 - mean) / std
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_for_odd_sizes(size: tuple[int, int]) -> None:
    compare(noise(*size))


@pytest.mark.parametrize("size", [size for size in SIZES if max(size) < 1000])
@pytest.mark.parametrize(
    "config",
    [
        {"size": 64, "interpolation": "bilinear"},
        {"size": (224, 160), "interpolation": "bilinear"},
        {"size": (160, 224)},
        {"resize_mode": "squash"},
        {"size": (100, 200), "resize_mode": "squash", "interpolation": "bilinear"},
    ],
)
def test_pixels_equal_for_other_ways_of_resizing(
    size: tuple[int, int], config: dict[str, Any]
) -> None:
    compare(noise(*size), **config)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (223, 224), (300, 170), (170, 301), (640, 427)])
@pytest.mark.parametrize("target", [224, (224, 160)])
def test_pixels_equal_when_the_longest_side_is_fitted(
    size: tuple[int, int], target: int | tuple[int, int]
) -> None:
    compare(noise(*size), size=target, resize_mode="longest", fill_color=77)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_opaque_modes_are_what_pillow_makes_rgb(mode: str) -> None:
    buffer = BytesIO()
    noise(311, 207).convert(mode).save(buffer, "PNG" if mode in ("1", "L", "P", "RGB") else "TIFF")
    with Image.open(BytesIO(buffer.getvalue())) as picture:
        reference = picture.convert("RGB")
    compare(open_picture(buffer.getvalue(), max_pixels=10**6), reference)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_pixels_with_an_alpha_channel_are_not_changed(mode: str) -> None:
    picture = noise(311, 207).convert("RGB")
    buffer = BytesIO()
    with_alpha = picture.convert("RGBA").convert(mode)
    with_alpha.save(buffer, "PNG")
    reference = with_alpha.convert("RGB")
    compare(open_picture(buffer.getvalue(), max_pixels=10**6), reference)
