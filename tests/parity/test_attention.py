from typing import Any

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn

from clickhouse_clip.udf.attention import SelfAttention, written_out


@pytest.fixture
def block() -> ResidualAttentionBlock:
    torch.manual_seed(3)
    block = ResidualAttentionBlock(d_model=48, n_head=3).eval()
    nn.init.normal_(block.attn.in_proj_bias)  # zero in a new model, which would hide a mistake
    nn.init.normal_(block.attn.out_proj.bias)
    return block


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 7, 48), (2, 77, 48)])
@torch.inference_mode()
def test_it_computes_what_torch_s_attention_does(
    block: ResidualAttentionBlock, shape: tuple[int, int, int], masked: bool
) -> None:
    x = torch.randn(shape)
    mask = None
    if masked:
        mask = torch.full((shape[1], shape[1]), float("-inf")).triu(1)
    expected = block(x, attn_mask=mask)
    with written_out(block):
        assert isinstance(block.attn, SelfAttention)
        torch.testing.assert_close(block(x, attn_mask=mask), expected, rtol=1e-5, atol=1e-5)


def test_a_model_has_its_own_attention_back(block: ResidualAttentionBlock) -> None:
    own = block.attn
    names = set(block.state_dict())
    with written_out(block):
        assert block.attn is not own
        assert set(block.state_dict()) == names
    assert block.attn is own


@pytest.mark.parametrize("options", [{"is_cross_attention": True}, {"batch_first": False}], ids=str)
def test_other_attention_stays(options: Any) -> None:
    block = ResidualAttentionBlock(d_model=48, n_head=3, **options)
    with written_out(block):
        assert isinstance(block.attn, nn.MultiheadAttention)
