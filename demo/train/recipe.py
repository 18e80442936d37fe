"""What decides the outcome of training: the numbers, the order of batches, the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demo.train.dataset import Drawings
from demo.train.sources import TRAINED_STYLES


@dataclass(frozen=True)
class Recipe:
    """The numbers of a run."""

    seed: int = 7
    steps: int = 1350
    batch: int = 512
    rate: float = 2e-3
    warmup: int = 100
    fall: float = 0.4
    decay: float = 0.05
    average: float = 0.995


def may_mirror(drawings: Drawings) -> npt.NDArray[np.bool_]:
    """Return bool [classes]: the mirror image still deserves the same caption."""
    sided = ("left", "right", "arrow", "clock", "letter", "button", "keycap", "hand")
    fixed = ("flags", "symbols", "")
    return np.array(
        [e.group not in fixed and not any(s in e.name for s in sided) for e in drawings.emoji]
    )


def batches(drawings: Drawings, recipe: Recipe, first: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the rows of each batch from step ``first`` on; every epoch is a weighted draw."""
    per_class = np.bincount(drawings.labels)[drawings.labels]
    style = np.array([s.weight for s in TRAINED_STYLES])[drawings.styles]
    weight = np.log(style / np.sqrt(per_class))
    per_epoch = int(0.9 * len(weight)) // recipe.batch
    order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for step in range(first, recipe.steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0 or step == first:
            rng = np.random.default_rng([recipe.seed, 1, epoch])
            chosen = np.argsort(-(weight + rng.gumbel(size=len(weight))))
            order = rng.permutation(chosen[: per_epoch * recipe.batch])
        yield order[place * recipe.batch : (place + 1) * recipe.batch]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Warm up linearly, stay, and fall linearly to zero over the last part.

    Up to the fall it does not depend on ``steps``: a run may be resumed with a larger number.
    """
    warm = min(1.0, (step + 1) / recipe.warmup)
    fall = min(1.0, (recipe.steps - step) / (recipe.fall * recipe.steps))
    return recipe.rate * warm * fall
