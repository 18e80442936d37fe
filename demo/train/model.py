"""The demo model: open_clip's CLIP class, made small; how it is written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from safetensors.torch import load_file, save_file
from torch import Tensor

NAME = "demo-clip"

#: A residual network learns from few pictures faster than a transformer does, and costs a fifth.
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 64,
        "layers": [2, 2, 2, 2],
        "width": 20,
        "head_width": 40,
        "patch_size": None,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 48,
        "heads": 3,
        "layers": 4,
    },
}


def write_config(folder: Path) -> None:
    """Write ``demo-clip.json``, which ``open_clip.add_model_config`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG, indent=2) + "\n", "utf-8")


def new_model(folder: Path) -> CLIP:
    """Return an untrained model made from the configuration in ``folder``."""
    open_clip.add_model_config(folder / f"{NAME}.json")
    model = open_clip.create_model(NAME)
    assert isinstance(model, CLIP)
    return model


def load_model(folder: Path) -> CLIP:
    """Return the shipped model, float16 weights widened to float32, in evaluation mode."""
    model = new_model(folder)
    model.load_state_dict(load_file(folder / f"{NAME}.safetensors"), strict=True)
    return model.eval()


def encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Encode int64 [B, L] with L <= 77 to float [B, 128], not normalised.

    The same as ``model.encode_text`` on rows padded to 77: the tower is causal and the end
    token, where it is read out, has the highest id of all, so nothing after it counts.
    """
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(dim=1)]
    out: Tensor = x @ model.text_projection
    return out


def padded(rows: list[list[int]], start: int, end: int) -> Tensor:
    """Frame token lists with start and end and pad them to int64 [B, longest]."""
    framed = [[start, *row, end] for row in rows]
    tokens = torch.zeros(len(framed), max(map(len, framed)), dtype=torch.int64)
    for i, row in enumerate(framed):
        tokens[i, : len(row)] = torch.tensor(row)
    return tokens


def save_half(state: dict[str, Tensor], folder: Path, taught_length: int) -> None:
    """Write a state dict as float16 safetensors under open_clip's names.

    Positions that no training caption reached repeat the last one taught.
    """
    out = {
        key: value.detach().half() if value.is_floating_point() else value.detach()
        for key, value in state.items()
    }
    positions = out["positional_embedding"].clone()
    positions[taught_length:] = positions[taught_length - 4 : taught_length].mean(0)
    out["positional_embedding"] = positions
    out = {key: value.clone().contiguous() for key, value in out.items()}
    write_config(folder)
    path = folder / f"{NAME}.safetensors"
    save_file(out, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it private
