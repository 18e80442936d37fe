"""Encoders: one small interface, an implementation per runtime."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Tower(Protocol):
    """One tower of a CLIP model, loaded and ready.

    Text: int64 token ids of shape (n, length). Image: uint8 pixels of shape (n, height, width, 3).
    Either gives float32 embeddings of shape (n, dim) as the model makes them, not normalised.
    """

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Encode one batch. Two threads may call it at once."""
        ...

    def serve_two(self) -> None:
        """Two threads will call it at once: let neither wait for the other's batch."""
        ...
