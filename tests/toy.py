"""A toy model: a real bundle for the real encoder, small enough to be computed again in numpy.

Texts become a weighted sum over their bytes, pictures a projection of their 8 x 8 pixels, so every
row's embedding tells which row it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import (
    FILES,
    MANIFEST,
    ImageSpec,
    Manifest,
    TextSpec,
    describe_file,
)
from clickhouse_clip.udf.engines.openvino import import_openvino
from clickhouse_clip.udf.text import BYTE_ORDER, FIRST_MERGE_ID

DIM = 16
SIDE = 8
CONTEXT_LENGTH = 77
_VOCABULARY = FIRST_MERGE_ID + 2

_random = np.random.default_rng(7)
_TOKENS = _random.normal(size=(_VOCABULARY, DIM)).astype(np.float32)
_TOKENS[0] = 0  # the id that pads
_POSITIONS = _random.uniform(0.5, 1.5, size=(CONTEXT_LENGTH, 1)).astype(np.float32)
_PIXELS = _random.normal(size=(SIDE * SIDE * 3, DIM)).astype(np.float32)


def make_bundle(directory: Path, *, scale: float = 1.0, name: str = "toy") -> Path:
    """Write the bundle; `scale` changes the first dimension only, which makes another model."""
    openvino = import_openvino()
    ops = openvino.opset13
    directory.mkdir(parents=True)
    factor = np.ones(DIM, np.float32)
    factor[0] = scale
    tokens = ops.parameter([-1, -1], np.int64, name="tokens")
    length = ops.gather(ops.shape_of(tokens), np.int64(1), np.int64(0))
    places = ops.range(np.int64(0), length, np.int64(1), output_type="i64")
    summands = ops.multiply(
        ops.gather(ops.constant(_TOKENS * factor), tokens, np.int64(0)),
        ops.gather(ops.constant(_POSITIONS), places, np.int64(0)),
    )
    text = ops.reduce_sum(summands, np.int64(1))
    pixels = ops.parameter([-1, SIDE, SIDE, 3], np.uint8, name="pixels")
    flat = ops.reshape(ops.convert(pixels, "f32"), np.array([-1, SIDE * SIDE * 3]), False)
    image = ops.matmul(flat, ops.constant(_PIXELS * factor), False, False)
    for tower, result, parameter in (("text", text, tokens), ("image", image, pixels)):
        model = openvino.Model([result], [parameter], tower)
        openvino.save_model(model, directory / f"{tower}.xml", compress_to_fp16=False)
    tokenizer = {"type": "clip-bpe", "clean": "lower", "merges": []}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    manifest = Manifest(
        model=name,
        weights="seed 7",
        weights_sha256=hashlib.sha256(name.encode()).hexdigest(),
        embedding_dim=DIM,
        text=TextSpec(CONTEXT_LENGTH, _VOCABULARY, causal=True, pad_id=0),
        image=ImageSpec(SIDE, SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", "shortest", 0),
        files={file: describe_file(directory / file) for file in FILES},
        made_with={},
        identity="",
    )
    (directory / MANIFEST).write_bytes(manifest.to_json())
    return directory


def text_vector(text: bytes) -> NDArray[np.float32]:
    """The normalised embedding of a lower-case ASCII text of letters and digits."""
    ids = [FIRST_MERGE_ID]
    for word in re.findall(rb"[a-z]+|[0-9]", text):
        ids += [BYTE_ORDER.index(byte) for byte in word]
        ids[-1] += 256
    ids.append(FIRST_MERGE_ID + 1)
    if len(ids) > CONTEXT_LENGTH:
        ids = [*ids[: CONTEXT_LENGTH - 1], FIRST_MERGE_ID + 1]
    return _normalised((_TOKENS[ids] * _POSITIONS[: len(ids)]).sum(0))


def image_vector(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The normalised embedding of a picture of 8 x 8 RGB pixels."""
    return _normalised(pixels.reshape(-1).astype(np.float32) @ _PIXELS)


def _normalised(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector)).astype(np.float32)
