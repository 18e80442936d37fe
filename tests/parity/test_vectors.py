from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip import get_tokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clickhouse_clip.udf.bundle import Manifest, load_manifest, verify
from clickhouse_clip.udf.engines import Tower
from clickhouse_clip.udf.engines import torch as torch_engine
from clickhouse_clip.udf.engines.openvino import load, resolve_precision
from clickhouse_clip.udf.image import preprocess
from clickhouse_clip.udf.text import Tokenizer, batch
from tests.parity.conftest import MODEL

TEXTS = [
    "",
    "a photo of a dog",
    "a diagram",
    "ein schönes Bild, 犬 😂",
    "<end_of_text> and what is behind it",
    "the quick brown fox jumps over the lazy dog " * 2,
    "word " * 75,
    "longer than the context " * 30,
]


@pytest.fixture(scope="session")
def manifest(bundle: Path) -> Manifest:
    return load_manifest(bundle)


@pytest.fixture(scope="session")
def tokenizer(bundle: Path, manifest: Manifest) -> Tokenizer:
    return Tokenizer.load(bundle, manifest)


#: Either engine in float32: OpenVINO's, and the one of GPUs, here on the processor.
ENGINES = {"openvino": load, "torch": partial(torch_engine.load, device="cpu")}


@pytest.fixture(scope="session", params=ENGINES)
def text_tower(request: pytest.FixtureRequest, bundle: Path, manifest: Manifest) -> Tower:
    return ENGINES[request.param](bundle, manifest, "text", precision="fp32")


@pytest.fixture(scope="session", params=ENGINES)
def image_tower(request: pytest.FixtureRequest, bundle: Path, manifest: Manifest) -> Tower:
    return ENGINES[request.param](bundle, manifest, "image", precision="fp32")


@pytest.fixture(scope="session")
def expected_texts(reference: Any) -> NDArray[np.float32]:
    with torch.inference_mode():
        vectors = reference.encode_text(get_tokenizer(MODEL)(TEXTS), normalize=True)
    return np.asarray(vectors.numpy())


def pictures() -> list[Image.Image]:
    source = np.random.default_rng(5)
    shapes = [(1, 1), (30, 200), (224, 224), (480, 640), (427, 640), (300, 300)]
    noise = [Image.fromarray(source.integers(0, 256, (*shape, 3), np.uint8)) for shape in shapes]
    return [*noise, Image.new("RGB", (50, 50), "white"), Image.new("RGB", (50, 50), "black")]


@pytest.fixture(scope="session")
def expected_pictures(reference: Any) -> NDArray[np.float32]:
    config = PreprocessCfg(**reference.visual.preprocess_cfg)
    transform = image_transform_v2(config, is_train=False)
    with torch.inference_mode():
        planes = torch.stack([transform(picture) for picture in pictures()])
        return np.asarray(reference.encode_image(planes, normalize=True).numpy())


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def encode_texts(
    tower: Tower, tokenizer: Tokenizer, manifest: Manifest, texts: list[str]
) -> NDArray[np.float32]:
    tokens = tokenizer.encode([text.encode() for text in texts])
    return normalised(tower.encode(batch(tokens, max(map(len, tokens)), manifest.text)))


def pixels(manifest: Manifest) -> NDArray[np.uint8]:
    return np.stack([preprocess(picture, manifest.image) for picture in pictures()])


def test_the_exported_bundle_is_whole_and_describes_the_model(
    bundle: Path, manifest: Manifest
) -> None:
    verify(bundle, manifest)
    assert manifest.model == MODEL
    assert manifest.weights == "random.safetensors"
    assert manifest.embedding_dim == 512
    assert manifest.text.causal
    assert manifest.text.context_length == 77
    assert (manifest.image.height, manifest.image.width) == (224, 224)


def test_text_vectors_equal_open_clip_s(
    text_tower: Tower,
    tokenizer: Tokenizer,
    manifest: Manifest,
    expected_texts: NDArray[np.float32],
) -> None:
    actual = encode_texts(text_tower, tokenizer, manifest, TEXTS)
    assert np.abs(actual - expected_texts).max() < 2e-5


def test_a_text_has_one_vector_whatever_batch_and_length_it_comes_in(
    text_tower: Tower,
    tokenizer: Tokenizer,
    manifest: Manifest,
    expected_texts: NDArray[np.float32],
) -> None:
    together = encode_texts(text_tower, tokenizer, manifest, TEXTS)
    for place, text in enumerate(TEXTS):
        alone = encode_texts(text_tower, tokenizer, manifest, [text])
        assert np.abs(alone - together[place]).max() < 1e-5
        # Alone, it is cut to its own length: that changes nothing either.
        assert np.abs(alone - expected_texts[place]).max() < 2e-5
    many = encode_texts(text_tower, tokenizer, manifest, TEXTS * 9)
    assert np.abs(many - np.tile(together, (9, 1))).max() < 1e-5


def test_picture_vectors_equal_open_clip_s(
    image_tower: Tower, manifest: Manifest, expected_pictures: NDArray[np.float32]
) -> None:
    actual = normalised(image_tower.encode(pixels(manifest)))
    assert np.abs(actual - expected_pictures).max() < 2e-5


def test_a_picture_has_one_vector_whatever_batch_it_comes_in(
    image_tower: Tower, manifest: Manifest
) -> None:
    together = normalised(image_tower.encode(pixels(manifest)))
    for place, one in enumerate(pixels(manifest)):
        assert np.abs(normalised(image_tower.encode(one[None])) - together[place]).max() < 1e-5


@pytest.mark.skipif(resolve_precision("auto") != "bf16", reason="this processor has no bf16")
def test_bf16_vectors_point_where_fp32_ones_do(
    bundle: Path,
    tokenizer: Tokenizer,
    manifest: Manifest,
    expected_texts: NDArray[np.float32],
    expected_pictures: NDArray[np.float32],
) -> None:
    texts = encode_texts(
        load(bundle, manifest, "text", precision="bf16"), tokenizer, manifest, TEXTS
    )
    assert (texts * expected_texts).sum(1).min() > 0.999
    tower = load(bundle, manifest, "image", precision="bf16")
    assert (normalised(tower.encode(pixels(manifest))) * expected_pictures).sum(1).min() > 0.999
