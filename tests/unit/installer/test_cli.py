from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clickhouse_clip.installer.cli import main
from clickhouse_clip.udf.settings import Settings


def arguments(tmp_path: Path, bundle: Path, *more: str) -> list[str]:
    return [
        *("--bundle", str(bundle)),
        *("--config-dir", str(tmp_path / "config")),
        *("--data-dir", str(tmp_path / "data")),
        *more,
    ]


def load_settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path / "config" / "clickhouse-clip" / "settings.json")


def test_standalone(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, bundle, "--standalone")) == 0
    data = tmp_path / "data"
    assert load_settings(tmp_path) == Settings(
        bundle=bundle,
        runtime_dir=data / "clickhouse-clip" / "run",
        log_file=data / "clickhouse-clip" / "log" / "encoder.log",
        image_roots=(data / "user_files",),
    )
    assert (tmp_path / "config" / "config.xml").is_file()
    assert (data / "user_files").is_dir()
    output = capsys.readouterr().out
    assert str(data / "user_scripts" / "encode_text.py") in output
    assert "ViT-tiny" in output
    assert "SYSTEM RELOAD FUNCTIONS" in output


def test_again_there_is_nothing_to_do(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(tmp_path, bundle, "--standalone"))
    capsys.readouterr()
    assert main(arguments(tmp_path, bundle, "--standalone")) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_standalone_leaves_an_existing_server_config_alone(tmp_path: Path, bundle: Path) -> None:
    main(arguments(tmp_path, bundle, "--standalone"))
    config = tmp_path / "config" / "config.xml"
    config.write_text(config.read_text().replace("9000", "9900"))
    assert main(arguments(tmp_path, bundle, "--standalone")) == 0
    assert "9900" in config.read_text()


def test_existing_server_with_its_own_folders(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "config" / "config.xml").write_text(
        f"<clickhouse><user_scripts_path>{tmp_path}/scripts/</user_scripts_path>"
        f"<user_files_path>{tmp_path}/files/</user_files_path></clickhouse>"
    )
    more = ["--image-root", str(tmp_path / "pictures"), "--precision", "fp32", "--pool-size", "3"]
    assert main(arguments(tmp_path, bundle, *more)) == 0
    settings = load_settings(tmp_path)
    assert settings.image_roots == (tmp_path / "files", tmp_path / "pictures")
    assert settings.precision == "fp32"
    assert (tmp_path / "scripts" / "encode_image.py").is_file()
    functions = (tmp_path / "config" / "clickhouse-clip" / "functions.xml").read_text()
    assert functions.count("<pool_size>3</pool_size>") == 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "no such folder; name the server's data folder"),
        (["--standalone", "--bundle", "nowhere"], "no model bundle"),
        (["--standalone", "--image-root", "/nowhere"], "--image-root /nowhere: no such folder"),
    ],
)
def test_failures_are_one_line_on_stderr(
    tmp_path: Path,
    bundle: Path,
    more: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments(tmp_path, bundle, *more)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("install-udfs: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_no_config_names_the_remedy(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    assert main(arguments(tmp_path, bundle)) == 1
    assert "--standalone" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_pool_size_must_be_a_positive_number(tmp_path: Path, bundle: Path, size: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments(tmp_path, bundle, "--pool-size", size))
    assert caught.value.code == 2


def test_relative_paths_are_made_absolute(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["--bundle", bundle.name, "--config-dir", "config", "--data-dir", "data"]
    assert main([*line, "--standalone"]) == 0
    assert load_settings(tmp_path).bundle == bundle


def test_imports_no_model_library(tmp_path: Path, bundle: Path) -> None:
    code = (
        "import sys; from clickhouse_clip.installer.cli import main; "
        "assert main(sys.argv[1:]) == 0; "
        "print(sorted({'numpy', 'PIL', 'openvino', 'torch', 'ftfy'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments(tmp_path, bundle, "--standalone")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
