from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.udf.bundle import CUDA_FILES, FILES, load_manifest, parse_manifest, verify
from clickhouse_clip.udf.errors import BundleError
from tests.toy import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def changed(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    values = json.loads((bundle / "manifest.json").read_bytes())
    change(values)
    return json.dumps(values).encode()


def test_a_manifest_survives_writing_and_reading(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    assert manifest.to_json() == (bundle / "manifest.json").read_bytes()
    assert parse_manifest(manifest.to_json()) == manifest


def test_the_identity_changes_with_any_file(tmp_path: Path, bundle: Path) -> None:
    other = make_bundle(tmp_path / "other", scale=2.0)
    assert load_manifest(bundle).identity != load_manifest(other).identity


def test_a_whole_bundle_verifies(bundle: Path) -> None:
    verify(bundle, load_manifest(bundle))


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_one_wrong_byte_is_named(bundle: Path, name: str) -> None:
    manifest = load_manifest(bundle)
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: its SHA-256"):
        verify(bundle, manifest)


def test_a_file_cut_short_and_a_missing_file_are_named(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    (bundle / "text.bin").write_bytes((bundle / "text.bin").read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"text\.bin: has \d+ bytes"):
        verify(bundle, manifest)
    (bundle / "text.bin").unlink()
    with pytest.raises(BundleError, match=r"text\.bin: cannot be read"):
        verify(bundle, manifest)


def test_only_the_files_asked_for_are_verified(bundle: Path) -> None:
    manifest = load_manifest(bundle)
    (bundle / "image.bin").unlink()
    verify(bundle, manifest, ["text.xml", "text.bin"])


def test_a_folder_without_a_manifest_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no model bundle .* clip-bundle export"):
        load_manifest(tmp_path)


def test_an_unreadable_manifest_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


def test_a_format_of_the_future_is_refused_with_its_number(bundle: Path) -> None:
    with pytest.raises(BundleError, match="has format 2, this version reads 1"):
        parse_manifest(changed(bundle, lambda values: values.update(format=2)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", ""),
        ("model", "a\nb"),
        ("weights", 5),
        ("weights_sha256", "ABC"),
        ("embedding_dim", 0),
        ("embedding_dim", True),
        ("embedding_dim", "512"),
        ("text", []),
        ("text.context_length", 1),
        ("text.vocab_size", 0),
        ("text.causal", 1),
        ("text.pad_id", -1),
        ("image.size", [224]),
        ("image.size", [224, 0]),
        ("image.mean", [0.5, 0.5]),
        ("image.mean", [0.5, 0.5, float("nan")]),
        ("image.std", [0.5, 0.5, 0]),
        ("image.interpolation", "nearest"),
        ("image.interpolation", []),
        ("image.resize_mode", "stretch"),
        ("image.fill_color", 256),
        ("files.text.bin.sha256", "../x"),
        ("files.text.bin.bytes", -1),
        ("made_with", None),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(bundle: Path, path: str, value: Any) -> None:
    def change(values: dict[str, Any]) -> None:
        keys = ["files", "text.bin", path.rpartition(".")[2]] if "bin" in path else path.split(".")
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    with pytest.raises(BundleError, match=path):
        parse_manifest(changed(bundle, change))


@pytest.mark.parametrize("name", ["../text.bin", "/etc/passwd", "extra.bin"])
def test_a_manifest_cannot_name_other_files(bundle: Path, name: str) -> None:
    def change(values: dict[str, Any]) -> None:
        values["files"][name] = values["files"].pop("text.bin")

    with pytest.raises(BundleError, match="files: must be exactly"):
        parse_manifest(changed(bundle, change))


def with_files(bundle: Path, names: tuple[str, ...]) -> bytes:
    entry = {"sha256": "0" * 64, "bytes": 5}
    return changed(bundle, lambda values: values["files"].update(dict.fromkeys(names, entry)))


def test_a_manifest_names_all_that_a_gpu_needs_or_nothing_of_it(bundle: Path) -> None:
    assert not load_manifest(bundle).for_cuda
    manifest = parse_manifest(with_files(bundle, CUDA_FILES))
    assert manifest.for_cuda
    assert set(manifest.files) == {*FILES, *CUDA_FILES}
    assert parse_manifest(manifest.to_json()).files == manifest.files
    for name in CUDA_FILES:
        rest = tuple(other for other in CUDA_FILES if other != name)
        with pytest.raises(BundleError, match="files: must be exactly"):
            parse_manifest(with_files(bundle, rest))


def test_what_a_gpu_is_served_from_is_verified_with_the_rest(bundle: Path) -> None:
    manifest = parse_manifest(with_files(bundle, CUDA_FILES))
    with pytest.raises(BundleError, match=r"open_clip\.json: cannot be read"):
        verify(bundle, manifest)
