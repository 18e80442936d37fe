from __future__ import annotations

import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import open_clip
import pytest
import torch
from open_clip import CLIP, CustomTextCLIP
from safetensors.torch import save_file

from clickhouse_clip.udf import export as export_module
from clickhouse_clip.udf.bundle import load_manifest, verify
from clickhouse_clip.udf.bundle_cli import main
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.open_clip_models import refusal

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}


def small(**text: Any) -> dict[str, Any]:
    return {**SMALL, "text_cfg": {**SMALL["text_cfg"], **text}}


def checkpoint(folder: Path, config: dict[str, Any], custom_text: bool = False) -> Path:
    torch.manual_seed(1)
    model = (CustomTextCLIP if custom_text else CLIP)(**config)
    path = folder / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, path)
    return path


def run(
    folder: Path, config: dict[str, Any], weights: Path, *options: str, name: str = "bundle"
) -> int:
    file = folder / "small-model.json"
    file.write_text(json.dumps(config))
    command = ["export", "--model-config", str(file), "--checkpoint", str(weights)]
    return main([*command, "--output", str(folder / name), *options])


def leftovers(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"small-model.json"}


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    assert run(folder, SMALL, checkpoint(folder, SMALL)) == 0
    return folder


def test_a_model_of_one_s_own_becomes_a_bundle_for_everyone_to_read(good: Path) -> None:
    manifest = load_manifest(good / "bundle")
    verify(good / "bundle", manifest)
    assert manifest.model == "small-model"
    assert manifest.embedding_dim == 16
    assert set(manifest.made_with) >= {"torch", "open_clip_torch", "openvino"}
    assert leftovers(good) == {"bundle", "weights.safetensors"}
    for path in (good / "bundle", *(good / "bundle").iterdir()):
        assert path.stat().st_mode & stat.S_IROTH


@pytest.mark.parametrize("wrap", ["state_dict", "module", "half"])
def test_checkpoints_of_other_shapes_hold_the_same_model(
    good: Path, tmp_path: Path, wrap: str
) -> None:
    weights = torch.load(convert_to_pt(good / "weights.safetensors", tmp_path / "plain.pt"))
    if wrap == "state_dict":
        weights = {"epoch": 3, "state_dict": weights}
    elif wrap == "module":
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    else:
        weights = {name: tensor.half() for name, tensor in weights.items()}
    torch.save(weights, tmp_path / "wrapped.pt")
    assert run(tmp_path, SMALL, tmp_path / "wrapped.pt") == 0
    same = load_manifest(tmp_path / "bundle").files == load_manifest(good / "bundle").files
    assert same == (wrap != "half")


def convert_to_pt(source: Path, target: Path) -> Path:
    from safetensors.torch import load_file

    torch.save(load_file(source), target)
    return target


def test_storing_as_float16_changes_no_vector(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(checkpoint(tmp_path, SMALL))
    exact = tmp_path / "exact.safetensors"
    save_file({name: tensor.half() for name, tensor in weights.items()}, exact)
    assert run(tmp_path, SMALL, exact, name="wide") == 0
    assert run(tmp_path, SMALL, exact, "--fp16", name="narrow") == 0
    wide, narrow = (load_manifest(tmp_path / name) for name in ("wide", "narrow"))
    assert narrow.files["text.bin"].bytes < 0.6 * wide.files["text.bin"].bytes
    tokens = np.array([[49406, 5, 6, 7, 8, 9, 10, 49407]])
    vectors = [
        load(tmp_path / name, manifest, "text", precision="fp32", threads=1).encode(tokens)
        for name, manifest in (("wide", wide), ("narrow", narrow))
    ]
    assert np.allclose(*vectors, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "custom_text", "causal"),
    [
        (small(no_causal_mask=True), False, False),
        (small(pool_type="last"), False, False),
        (small(pool_type="eos", eos_id=49407), False, True),
        (small(context_length=32), False, True),
        ({**SMALL, "custom_text": True}, True, True),
        ({**small(proj_bias=True), "custom_text": True}, True, True),
        ({**SMALL, "quick_gelu": True}, False, True),
    ],
)
def test_variants_of_clip_are_exported(
    tmp_path: Path, config: dict[str, Any], custom_text: bool, causal: bool
) -> None:
    built = {name: value for name, value in config.items() if name != "custom_text"}
    assert run(tmp_path, config, checkpoint(tmp_path, built, custom_text)) == 0
    manifest = load_manifest(tmp_path / "bundle")
    assert manifest.text.causal == causal
    assert manifest.text.context_length == config["text_cfg"]["context_length"]


def test_the_preprocessing_of_an_open_clip_config_is_kept(tmp_path: Path) -> None:
    preprocess = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.5, 0.5],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    config = {"model_cfg": SMALL, "preprocess_cfg": preprocess}
    assert run(tmp_path, config, checkpoint(tmp_path, SMALL)) == 0
    image = load_manifest(tmp_path / "bundle").image
    assert image.mean == (0.5, 0.5, 0.5)
    assert image.std == (0.25, 0.5, 0.5)
    assert (image.interpolation, image.resize_mode) == ("bilinear", "squash")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("coca_ViT-B-32", "CoCa"),
        ("roberta-ViT-B-32", "text tower is Hugging Face's roberta-base"),
        ("ViT-B-16-SigLIP", "tokenizer is timm/ViT-B-16-SigLIP"),
        ("ViT-L-14-CLIPA", "tokenizer is bert-base-uncased"),
    ],
)
def test_models_that_are_not_clip_are_refused_by_name(model: str, reason: str) -> None:
    assert reason in (refusal(model, open_clip.get_model_config(model)) or "")


def test_every_model_of_open_clip_is_exportable_or_refused_with_a_reason() -> None:
    exportable = [
        name
        for name in open_clip.list_models()
        if refusal(name, open_clip.get_model_config(name)) is None
    ]
    assert {"ViT-B-32", "ViT-B-16", "ViT-L-14", "RN50", "convnext_base"} <= set(exportable)
    assert not [name for name in exportable if "coca" in name or "siglip" in name.lower()]


def failure(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(["export", *command]) == 1
    return capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_model_is_refused_with_near_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "bundle")
    message = failure(capsys, "--model", "ViT-B32", "--checkpoint", "x.pt", "--output", output)
    assert "did you mean" in message
    assert "ViT-B-32" in message
    message = failure(capsys, "--model", "ViT-B-32", "--pretrained", "opena", "--output", output)
    assert "openai" in message
    assert not leftovers(tmp_path)


def test_quick_gelu_weights_and_gelu_models_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Mock(return_value={"url": "none", "quick_gelu": False})
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", known)
    output = str(tmp_path / "bundle")
    model = "ViT-B-32-quickgelu"
    message = failure(capsys, "--model", model, "--pretrained", "x", "--output", output)
    assert "export ViT-B-32 instead" in message


class Explosive:
    """What a hostile checkpoint holds: code that runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_a_checkpoint_runs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Explosive()}, tmp_path / "bad.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Explosive()))
    for name in ("bad.pt", "pickle.pt"):
        assert run(tmp_path, SMALL, tmp_path / name) == 1
        assert "no checkpoint that can be loaded safely" in capsys.readouterr().err
    assert leftovers(tmp_path) == {"bad.pt", "pickle.pt"}


def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = {**SMALL, "embed_dim": 32}
    assert run(tmp_path, wider, good / "weights.safetensors") == 1
    message = capsys.readouterr().err
    assert "do not fit" in message
    assert "size mismatch" in message
    assert run(tmp_path, SMALL, tmp_path / "none.safetensors") == 1
    assert "none.safetensors: cannot be read" in capsys.readouterr().err
    torch.save([1, 2], tmp_path / "list.pt")
    assert run(tmp_path, SMALL, tmp_path / "list.pt") == 1
    assert "holds no state_dict" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    weights = load_file(checkpoint(tmp_path, SMALL))
    weights["ln_final.bias"][3] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    assert run(tmp_path, SMALL, tmp_path / "nan.safetensors") == 1
    assert "ln_final.bias has values that are no finite numbers" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"vision_cfg": 1}', '{"embed_dim": "x"}'])
def test_a_wrong_configuration_is_refused(
    tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (tmp_path / "m.json").write_text(content)
    message = failure(
        capsys,
        *("--model-config", str(tmp_path / "m.json")),
        *("--checkpoint", str(good / "weights.safetensors"), "--output", str(tmp_path / "out")),
    )
    assert "no open_clip model configuration" in message


def test_a_bundle_is_never_overwritten(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = load_manifest(good / "bundle").identity
    assert run(good, SMALL, good / "weights.safetensors") == 1
    assert "is already there" in capsys.readouterr().err
    assert load_manifest(good / "bundle").identity == before


def test_a_tower_that_differs_from_open_clip_makes_no_bundle(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_module, "TOLERANCE", 0.0)
    assert run(tmp_path, SMALL, good / "weights.safetensors") == 1
    assert "differs from open_clip's" in capsys.readouterr().err
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(
    good: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [
        *(sys.executable, "-m", "clickhouse_clip.udf.bundle_cli", "export"),
        *("--model-config", str(good / "small-model.json")),
        *("--checkpoint", str(good / "weights.safetensors"), "--output", str(tmp_path / "out")),
    ]
    # What a shell starts in the background ignores SIGINT, and so would the export below it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "exporting the image tower" in line:
                break
        time.sleep(0.2)
        process.send_signal(number)
        output = process.stderr.read()
        assert process.wait() == 130
    assert "interrupted, no bundle was made" in output
    assert not leftovers(tmp_path)
