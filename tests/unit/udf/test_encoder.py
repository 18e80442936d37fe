from __future__ import annotations

import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clickhouse_clip.udf import encoder as encoder_module
from clickhouse_clip.udf import image
from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.catalog import BY_NAME
from clickhouse_clip.udf.encoder import Encoder
from clickhouse_clip.udf.engines import openvino
from clickhouse_clip.udf.errors import BundleError, ProtocolError
from clickhouse_clip.udf.native import Oversized
from clickhouse_clip.udf.settings import Settings
from tests import toy


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


def encoder_of(bundle: Path, **settings: Any) -> Encoder:
    folder = bundle.parent
    chosen = {"image_roots": (folder,), "precision": "fp32", **settings}
    return Encoder(
        Settings(bundle=bundle, runtime_dir=folder / "run", log_file=folder / "log", **chosen),
        load_manifest(bundle),
    )


def encode(
    encoder: Encoder, function: str, rows: Sequence[bytes | Oversized]
) -> tuple[Any, dict[int, str]]:
    encoder.load(BY_NAME[function].tower)
    return encoder.start(BY_NAME[function], rows, len(rows)).result()


def png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_texts(bundle: Path) -> None:
    encoder = encoder_of(bundle)
    words = [b"dog", b"cat", b"", b"dog"] * 100
    vectors, skipped = encode(encoder, "encode_text", words)
    np.testing.assert_allclose(vectors, [toy.text_vector(word) for word in words], atol=1e-6)
    assert skipped == {}
    assert encoder.report()["rows"] == {"encode_text": 400}
    assert encoder.report()["cache_hits"] == 397


def test_raw_embeddings_are_a_setting_away(bundle: Path) -> None:
    vectors, _ = encode(encoder_of(bundle, normalize=False), "encode_text", [b"dog", b"cat"])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (abs(norms - 1) > 0.1).all()
    expected = [toy.text_vector(b"dog"), toy.text_vector(b"cat")]
    np.testing.assert_allclose(vectors / norms, expected, atol=1e-6)


def test_pictures_as_bytes(bundle: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (toy.SIDE, toy.SIDE, 3), np.uint8) for _ in range(70)]
    rows: list[bytes | Oversized] = [png(pixels) for pixels in pictures]
    rows[5] = b"nothing"
    rows[9] = Oversized(10**9)
    vectors, skipped = encode(encoder_of(bundle), "encode_image_bytes_or_empty", rows)
    assert skipped.keys() == {5, 9}
    assert "1000000000 bytes" in skipped[9]
    assert "max_bytes" in skipped[9]
    assert (vectors[[5, 9]] == 0).all()
    for row in set(range(70)) - {5, 9}:
        np.testing.assert_allclose(vectors[row], toy.image_vector(pictures[row]), atol=1e-6)


@pytest.mark.parametrize("reduced", [True, False])
def test_reduced_decoding_is_a_setting(
    bundle: Path, reduced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def record(data: bytes, **options: Any) -> Image.Image:
        asked.append(options["reduce_for"])
        return opened(data, **options)

    opened = image.open_picture
    monkeypatch.setattr(image, "open_picture", record)
    encoder = encoder_of(bundle, reduced_decoding=reduced)
    encode(encoder, "encode_image_bytes", [png(np.zeros((9, 9, 3), np.uint8))])
    assert asked == [encoder.manifest.image if reduced else None]


def test_large_pictures_are_decoded_one_after_another(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that wait are not taken for hung: only one is being worked on."""
    monkeypatch.setattr(encoder_module, "_PIXELS_PER_THREAD", 0)
    encoder = encoder_of(bundle, max_pixels=100, threads=4)
    counted: list[tuple[int, int]] = []
    inside: list[int] = []

    def preprocess(picture: Image.Image, spec: Any) -> Any:
        inside.append(1)
        # Long enough for the other threads to come and wait for room.
        time.sleep(0.02)
        counted.append((len(inside), len(encoder.tasks.under_way())))
        inside.pop()
        return real(picture, spec)

    real = image.preprocess
    monkeypatch.setattr(image, "preprocess", preprocess)
    rows = [png(np.zeros((10, 10, 3), np.uint8)) for _ in range(20)]
    vectors, skipped = encode(encoder, "encode_image_bytes", rows)
    assert len(vectors) == 20
    assert not skipped
    assert {together for together, _ in counted} == {1}
    assert min(watched for _, watched in counted) == 1


def test_towers_load_at_first_use(bundle: Path) -> None:
    encoder = encoder_of(bundle)
    assert encoder.loaded == []
    encode(encoder, "encode_text", [b"dog"])
    assert encoder.loaded == ["text"]


def test_a_tower_that_does_not_fit_into_memory(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = encoder_of(bundle)
    load = openvino.load

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(openvino, "load", refuse)
    with pytest.raises(BundleError, match=r"the image tower .* does not fit into the memory"):
        encoder.load("image")
    # Memory may be there the next time.
    monkeypatch.setattr(openvino, "load", load)
    encoder.load("image")


def test_a_text_of_a_gigabyte_is_refused(bundle: Path) -> None:
    with pytest.raises(ProtocolError, match=r"shorten it with left\(\)"):
        encode(encoder_of(bundle), "encode_text", [Oversized(1 << 31)])
