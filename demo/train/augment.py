"""Batched picture augmentation in torch: place, turn, tint and put on a random background."""

from __future__ import annotations

import math

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor
from torch.nn import functional

_MEAN = torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
_STD = torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1)


def normalised(rgb: Tensor) -> Tensor:
    """Apply CLIP's mean and deviation to float [B, 3, H, W] in 0..1."""
    return (rgb - _MEAN) / _STD


def _uniform(gen: torch.Generator, low: float, high: float, *size: int) -> Tensor:
    return torch.rand(*size, generator=gen) * (high - low) + low


def _placed(rgba: Tensor, side: int, mirror: Tensor, gen: torch.Generator) -> Tensor:
    """Scale, turn, shear and shift each drawing on a ``side`` x ``side`` canvas."""
    n = len(rgba)
    plain = torch.rand(n, generator=gen) < 0.15  # kept near upright, centred and full size
    size = torch.where(plain, _uniform(gen, 0.8, 1.0, n), _uniform(gen, 0.5, 1.15, n))
    stretch = torch.exp(_uniform(gen, -0.12, 0.12, n))
    angle = torch.where(plain, torch.zeros(n), torch.randn(n, generator=gen) * math.radians(12))
    shear = torch.randn(n, generator=gen) * 0.08 * ~plain
    flip = torch.where(mirror & (torch.rand(n, generator=gen) < 0.5), -1.0, 1.0)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    room = (1.03 - size).clamp(min=0.05)
    shift = _uniform(gen, -1.0, 1.0, n, 2) * (room * ~plain).unsqueeze(1)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = cos * flip * stretch
    theta[:, 0, 1] = (sin + shear) * flip
    theta[:, 1, 0] = -sin
    theta[:, 1, 1] = cos / stretch
    theta[:, :, 2] = -(theta[:, :, :2] @ shift.unsqueeze(2)).squeeze(2)
    grid = functional.affine_grid(theta, [n, 4, side, side], align_corners=False)
    return functional.grid_sample(rgba, grid, mode="bilinear", align_corners=False)


def _tinted(rgb: Tensor, alpha: Tensor, gen: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and (slightly) hue of premultiplied colour."""
    n = len(rgb)
    grey = rgb.mean(1, keepdim=True)
    saturation = _uniform(gen, 0.5, 1.5, n, 1, 1, 1)
    saturation[torch.rand(n, generator=gen) < 0.08] = 0.0
    rgb = grey + (rgb - grey) * saturation
    gain = _uniform(gen, 0.75, 1.25, n, 1, 1, 1) * _uniform(gen, 0.92, 1.08, n, 3, 1, 1)
    offset = _uniform(gen, -0.1, 0.1, n, 1, 1, 1) + _uniform(gen, -0.04, 0.04, n, 3, 1, 1)
    mix = torch.eye(3) + torch.randn(n, 3, 3, generator=gen) * 0.06  # small turns of hue
    rgb = torch.einsum("nij,njhw->nihw", mix, rgb)
    return torch.minimum((rgb * gain + offset * alpha).clamp(min=0.0), alpha)


def _backgrounds(n: int, side: int, gen: torch.Generator) -> Tensor:
    """Return float [n, 3, side, side]: half white, the rest plain colours and gradients."""
    corner = torch.rand(n, 3, 2, 2, generator=gen)
    kind = torch.rand(n, generator=gen)
    corner = torch.where((kind < 0.75).view(n, 1, 1, 1), corner[:, :, :1, :1], corner)
    grey = ((kind > 0.5) & (kind < 0.62)).view(n, 1, 1, 1)
    corner = torch.where(grey, corner[:, :1].expand_as(corner), corner)
    corner = torch.where((kind < 0.5).view(n, 1, 1, 1), torch.ones(()), corner)
    return functional.interpolate(corner, size=(side, side), mode="bilinear", align_corners=True)


def augment(pixels: Tensor, mirror: Tensor, side: int, gen: torch.Generator) -> Tensor:
    """Turn drawings into training pictures.

    ``pixels``: uint8 [B, 4, S, S], premultiplied RGBA; ``mirror``: bool [B], may be flipped.
    Returns float32 [B, 3, side, side] with CLIP's normalisation.
    """
    n = len(pixels)
    rgba = _placed(pixels.float() / 255.0, side, mirror, gen)
    alpha = rgba[:, 3:]
    rgb = _tinted(rgba[:, :3], alpha, gen) + _backgrounds(n, side, gen) * (1.0 - alpha)
    noise = _uniform(gen, 0.0, 0.03, n, 1, 1, 1)
    noisy = rgb + torch.randn(rgb.shape, generator=gen) * noise
    blurred = functional.avg_pool2d(noisy, 3, stride=1, padding=1, count_include_pad=False)
    blur = (torch.rand(n, generator=gen) < 0.15).view(n, 1, 1, 1)
    return normalised(torch.where(blur, blurred, noisy).clamp(0.0, 1.0))
