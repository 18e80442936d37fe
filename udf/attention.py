"""Self-attention written out in the form that OpenVINO's CPU plugin fuses best.

Exported as it is, torch's attention turns queries, keys and values about eight times a layer, each
a copy of them in memory. Written as here, one copy is left before the fused attention and one after
it: ViT-B/32's text tower is a seventh faster, its image tower a twentieth (AVX512-BF16).
Needs torch and open_clip; only `export` imports it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """What a batch-first `nn.MultiheadAttention` computes in evaluation, with its weights."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(
        self, x: Tensor, *_: Tensor, attn_mask: Tensor | None = None, **_options: bool
    ) -> tuple[Tensor, None]:
        """Attend within x, (n, length, width); it is given as keys and values, too.

        attn_mask: added to the scores, (length, length).
        """
        n, length, width = x.shape
        size = width // self.heads
        parts = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        parts = parts.view(n, length, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        scores = (q * size**-0.5) @ k.transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask
        attended = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.out_proj(attended.reshape(n, length, width)), None


@contextmanager
def written_out(tower: nn.Module) -> Iterator[None]:
    """Inside, open_clip's residual blocks have `SelfAttention`; afterwards again their own.

    Other attention (timm's towers, pooling by attention) stays as it is.
    """
    own: dict[ResidualAttentionBlock, nn.MultiheadAttention] = {}
    for block in tower.modules():
        # ln_1_kv: its keys and values come from elsewhere.
        if isinstance(block, ResidualAttentionBlock) and not hasattr(block, "ln_1_kv"):
            attention = cast(nn.MultiheadAttention, block.attn)
            if attention.batch_first:
                own[block] = attention
    try:
        for block, attention in own.items():
            block.attn = SelfAttention(attention)
        yield
    finally:
        for block, attention in own.items():
            block.attn = attention
