import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf import quantize as quantize_module
from clickhouse_clip.udf.bundle import load_manifest, verify
from clickhouse_clip.udf.bundle_cli import main
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.errors import BundleError, ExportError
from clickhouse_clip.udf.image import open_picture, preprocess
from clickhouse_clip.udf.quantize import Fidelity, quantize
from clickhouse_clip.udf.text import Tokenizer, batch

DEMO = Path(__file__).parents[3] / "demo"
BUNDLE = DEMO / "bundle"
PICTURES = sorted((DEMO / "pictures").glob("*.webp"))[::14]


def silent(_: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("int8") / "bundle"
    quantize(BUNDLE, output, silent)
    return output


def embeddings(directory: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the demo's names and of its pictures."""
    manifest = load_manifest(directory)
    names = [path.stem.replace("-", " ").encode() for path in PICTURES]
    tokens = Tokenizer.load(directory, manifest).encode(names)
    padded = batch(tokens, max(map(len, tokens)), manifest.text)
    pixels = np.stack(
        [
            preprocess(open_picture(path.read_bytes(), max_pixels=10**6), manifest.image)
            for path in PICTURES
        ]
    )
    vectors = (
        load(directory, manifest, "text", precision="fp32").encode(padded),
        load(directory, manifest, "image", precision="fp32").encode(pixels),
    )
    texts, images = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in vectors)
    return texts, images


def test_a_quantised_bundle_is_whole_and_another_model(quantised: Path) -> None:
    before, after = load_manifest(BUNDLE), load_manifest(quantised)
    verify(quantised, after)
    assert after.weights == f"{before.weights}, int8"
    assert after.weights_sha256 == before.weights_sha256
    assert after.identity != before.identity
    assert (after.text, after.image) == (before.text, before.image)
    assert "openvino" in after.made_with["quantised with"]


def test_its_weights_are_int8(quantised: Path) -> None:
    for network in ("text.xml", "image.xml"):
        types = {"i8": 0, "f32": 0}
        for data in ElementTree.parse(quantised / network).iter("data"):
            kind = data.get("element_type")
            if kind in types and data.get("shape", "").count(",") == 1:
                types[kind] += int(data.get("size", 0))
        assert types["i8"] > 100_000
    assert (quantised / "image.bin").stat().st_size < 0.9 * (BUNDLE / "image.bin").stat().st_size


def test_embeddings_and_what_they_find_stay_the_same(quantised: Path) -> None:
    texts, images = embeddings(BUNDLE)
    texts_int8, images_int8 = embeddings(quantised)
    assert (texts * texts_int8).sum(1).min() > 0.999
    assert (images * images_int8).sum(1).min() > 0.999
    assert not np.array_equal(texts, texts_int8)
    nearest, nearest_int8 = (
        np.argsort(-pair[0] @ pair[1].T, axis=1)[:, :10]
        for pair in ((texts, images), (texts_int8, images_int8))
    )
    found = [len(set(a) & set(b)) for a, b in zip(nearest, nearest_int8, strict=True)]
    assert np.mean(found) > 9.5


def test_a_model_that_int8_does_not_suit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "LEAST_COSINE", 0.9999999)
    with pytest.raises(ExportError, match=r"int8 does not suit this model: .* text tower"):
        quantize(BUNDLE, tmp_path / "new", silent)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(BUNDLE, damaged)
    weights = bytearray((damaged / "image.bin").read_bytes())
    weights[1000] ^= 1
    (damaged / "image.bin").write_bytes(weights)
    with pytest.raises(BundleError, match=r"image\.bin: its SHA-256"):
        quantize(damaged, tmp_path / "new", silent)
    assert list(tmp_path.iterdir()) == [damaged]


def test_a_quantised_bundle_is_not_quantised_again(quantised: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is quantised already"):
        quantize(quantised, tmp_path / "new", silent)


def test_the_command_says_what_it_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new"
    manifest = load_manifest(BUNDLE)
    fidelity = {"text": Fidelity(0.9987, 0.9991), "image": Fidelity(0.9995, 0.9999)}
    monkeypatch.setattr(quantize_module, "quantize", lambda *_: (manifest, fidelity))
    assert main(["quantize", str(BUNDLE), "--output", str(output)]) == 0
    printed = capsys.readouterr().err
    assert "text tower: cosine to the embeddings before 0.9991, at least 0.9987" in printed
    assert "image tower: cosine to the embeddings before 0.9999, at least 0.9995" in printed


def test_the_command_refuses_a_folder_that_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["quantize", str(BUNDLE), "--output", str(tmp_path)]) == 1
    assert "is already there" in capsys.readouterr().err
