"""The two towers of an open_clip model as modules of their own, in the form that is exported.

Needs torch and open_clip; only `export` and `engines.torch` import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.model import CLIP
from torch import Tensor, nn


def tensors_of(tower: nn.Module) -> dict[str, Tensor]:
    """All that a tower computes with, by name: parameters, and buffers that `state_dict` omits."""
    parameters = tower.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(tower.named_buffers(remove_duplicate=False))}


class ImageTower(nn.Module):
    """uint8 pixels (n, height, width, 3) to float32 embeddings (n, dim), not normalised.

    The mean and the deviation of the colours are applied here, with the same operations in the
    same order as torchvision's ToTensor and Normalize.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.visual = model.visual
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode a batch."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        embeddings: Tensor = self.visual((images - self.mean) / self.std)
        return embeddings


class TextTower(nn.Module):
    """int64 token ids (n, length) to float32 embeddings (n, dim), not normalised.

    As `CLIP.encode_text` and `TextTransformer.forward`, for any length up to the context length:
    positions and mask are cut to it, which is exact for a causal tower.
    """

    attn_mask: Tensor | None

    def __init__(self, model: Any, end_id: int) -> None:
        super().__init__()
        text = model if isinstance(model, CLIP) else model.text
        self.pool = model.text_pool_type if isinstance(model, CLIP) else text.pool_type
        # "argmax" is the place of the greatest id, which is the end-of-text token.
        self.end_id = end_id
        if self.pool == "eos":
            self.end_id = model.text_eos_id if isinstance(model, CLIP) else text.eos_id
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.transformer = text.transformer
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.register_buffer("attn_mask", text.attn_mask)
        self.context_length = text.context_length

    @property
    def causal(self) -> bool:
        """Whether tokens after the end of a text change nothing."""
        return self.attn_mask is not None and self.pool in ("argmax", "eos")

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode a batch."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        pooled: Tensor = self.ln_final(self._pool(self.transformer(x, attn_mask=mask), tokens))
        if isinstance(self.text_projection, nn.Linear):
            pooled = self.text_projection(pooled)
        elif self.text_projection is not None:
            pooled @= self.text_projection
        return pooled

    def _pool(self, x: Tensor, tokens: Tensor) -> Tensor:
        if self.pool == "first":
            return x[:, 0]
        if self.pool == "last":
            return x[:, -1]
        # The first of them: a text may say <end_of_text> itself. Counted instead of argmax, whose
        # choice among equals is not the same in every runtime.
        ended = (tokens == self.end_id).to(torch.int64).cumsum(1)
        first = (ended == 0).to(torch.int64).sum(1)
        return x[torch.arange(x.shape[0], device=x.device), first]
