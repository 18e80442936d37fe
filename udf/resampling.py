"""Pillow's resampling of one axis, for the few output places that a crop keeps.

A picture of 1 x 5000 pixels, its short side brought to 224, is 1,120,000 pixels long, of which 224
are kept. Pillow computes the whole; this computes the 224, with Pillow's own arithmetic
(src/libImaging/Resample.c: `precompute_coeffs`, `normalize_coeffs_8bpc`), so that the bytes agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Fixed-point digits of a weight for 8-bit channels: `PRECISION_BITS` in Resample.c.
_PRECISION_BITS = 32 - 8 - 2


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


#: Filter and the distance that it reaches, in pixels of the larger of the two scales.
_KERNELS: dict[Image.Resampling, tuple[Callable[..., NDArray[np.float64]], float]] = {
    Image.Resampling.BICUBIC: (_bicubic, 2.0),
    Image.Resampling.BILINEAR: (_bilinear, 1.0),
}


@dataclass(frozen=True, slots=True)
class Taps:
    """What each output place is made of: input places from `start`, and their integer weights."""

    starts: list[int]
    weights: list[NDArray[np.int64]]

    @property
    def low(self) -> int:
        """First input place in use."""
        return min(self.starts)

    @property
    def high(self) -> int:
        """One past the last input place in use."""
        return max(
            start + len(weights) for start, weights in zip(self.starts, self.weights, strict=True)
        )


def taps(size: int, resized: int, first: int, count: int, resampling: Image.Resampling) -> Taps:
    """The taps of output places `first` to `first + count` when `size` places become `resized`."""
    kernel, reach = _KERNELS[resampling]
    scale = size / resized
    filter_scale = max(scale, 1.0)
    support = reach * filter_scale
    starts, weights = [], []
    for place in range(first, first + count):
        center = (place + 0.5) * scale
        start = max(int(center - support + 0.5), 0)
        end = min(int(center + support + 0.5), size)
        raw = kernel((np.arange(start, end) - center + 0.5) * (1.0 / filter_scale))
        # cumsum adds in C's order, sum does not.
        shares = raw / np.cumsum(raw)[-1]
        starts.append(start)
        weights.append(
            np.trunc(shares * (1 << _PRECISION_BITS) + np.copysign(0.5, shares)).astype(np.int64)
        )
    return Taps(starts, weights)


def resample(pixels: NDArray[np.uint8], taps: Taps, axis: int) -> NDArray[np.uint8]:
    """Resample along `axis`; along it, `pixels` starts at input place `taps.low`."""
    source = np.moveaxis(pixels, axis, 0)
    result = np.empty((len(taps.starts), *source.shape[1:]), np.uint8)
    for place, (start, weights) in enumerate(zip(taps.starts, taps.weights, strict=True)):
        window = source[start - taps.low :][: len(weights)].astype(np.int64)
        total = np.tensordot(weights, window, axes=1) + (1 << (_PRECISION_BITS - 1))
        result[place] = np.clip(total >> _PRECISION_BITS, 0, 255)
    return np.moveaxis(result, 0, axis)
