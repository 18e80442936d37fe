"""The shipped model finds the shipped pictures by their names."""

from __future__ import annotations

import numpy as np

from clickhouse_clip.demo import BUNDLE, PICTURES
from clickhouse_clip.udf.bundle import load_manifest, verify
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.image import open_picture, preprocess
from clickhouse_clip.udf.text import Tokenizer, batch


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_recall_on_the_shipped_pictures() -> None:
    manifest = load_manifest(BUNDLE)
    verify(BUNDLE, manifest)
    paths = sorted(PICTURES.glob("*.webp"))
    assert len(paths) > 500
    pixels = [
        preprocess(open_picture(path.read_bytes(), max_pixels=10**6), manifest.image)
        for path in paths
    ]
    names = [path.stem.replace("-", " ").encode() for path in paths]
    tokens = Tokenizer.load(BUNDLE, manifest).encode(names)
    padded = batch(tokens, max(map(len, tokens)), manifest.text)
    images = unit(load(BUNDLE, manifest, "image", precision="fp32").encode(np.stack(pixels)))
    texts = unit(load(BUNDLE, manifest, "text", precision="fp32").encode(padded))
    similarity = texts @ images.T
    rank = (similarity > np.diag(similarity)[:, None]).sum(1)
    assert (rank < 10).mean() > 0.97
    assert (rank < 1).mean() > 0.8


def test_weights_and_pictures_stay_small() -> None:
    shipped = [path for folder in (BUNDLE, PICTURES) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in shipped) < 15_000_000
