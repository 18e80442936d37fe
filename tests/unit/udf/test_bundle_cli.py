from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.bundle_cli import main
from tests.toy import make_bundle


def test_verify_names_the_model_of_a_whole_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle", name="some-model")
    assert main(["verify", str(bundle)]) == 0
    output = capsys.readouterr().out
    assert "some-model" in output
    assert load_manifest(bundle).identity in output


def test_verify_says_what_is_wrong_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    (bundle / "image.bin").write_bytes(b"")
    assert main(["verify", str(bundle)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("clip-bundle: ")
    assert "image.bin" in captured.err


def test_export_without_torch_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "clickhouse_clip.udf.export", raising=False)
    output = tmp_path / "bundle"
    assert main(["export", "--model", "X", "--pretrained", "y", "--output", str(output)]) == 1
    assert "pip install 'clickhouse-clip[export]'" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--checkpoint", "c.pt"], "--model NAME"),
        (["--pretrained", "x", "--model-config", "m.json"], "--checkpoint"),
    ],
)
def test_export_needs_a_model_and_its_weights(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "--output", "bundle"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["export"], ["verify"], ["export", "--output", "x"]])
def test_an_incomplete_command_is_a_usage_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
