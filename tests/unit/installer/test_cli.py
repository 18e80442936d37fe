from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.installer.cli import _parser, main
from clickhouse_clip.udf.settings import Settings
from tests.server_trees import TREES, state


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
        ([], "has no config.xml and no config.yaml"),
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
    assert caught.value.code == 1  # 2 would say that a dry run found something to do


def test_relative_paths_are_made_absolute(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["--bundle", bundle.name, "--config-dir", "config", "--data-dir", "data"]
    assert main([*line, "--standalone"]) == 0
    assert load_settings(tmp_path).bundle == bundle


def installed(tmp_path: Path, bundle: Path, *more: str) -> list[str]:
    """A server with the functions; gives the arguments that name it."""
    assert main(arguments(tmp_path, bundle, "--standalone", "--quiet", *more)) == 0
    return ["--config-dir", str(tmp_path / "config")]


def test_dry_run_shows_every_change_and_makes_none(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments(tmp_path, bundle, "--standalone", "--dry-run")) == 2
    assert sorted(tmp_path.rglob("*")) == before
    output = capsys.readouterr().out
    assert "+++ " + str(tmp_path / "config" / "clickhouse-clip" / "functions.xml") in output
    assert "+        <name>encode_text</name>" in output
    server = installed(tmp_path, bundle)
    assert main([*server, "--dry-run"]) == 0
    capsys.readouterr()
    assert main([*server, "--dry-run", "--pool-size", "7"]) == 2
    output = capsys.readouterr().out
    assert output.count("-        <pool_size>32</pool_size>") == 5
    assert output.count("+        <pool_size>7</pool_size>") == 5


def test_json_is_one_object_whatever_happens(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> dict[str, Any]:
        main([*options, "--json"])
        captured = capsys.readouterr()
        assert captured.err == ""
        answer: dict[str, Any] = json.loads(captured.out)
        return answer

    line = arguments(tmp_path, bundle, "--standalone")
    assert run(*line, "--dry-run")["status"] == "would-change"
    done = run(*line)
    assert done["status"] == "installed"
    assert {entry["change"] for entry in done["changes"]} == {"new"}
    assert done["functions"][0] == "encode_text"
    assert run(*line)["status"] == "unchanged"
    assert run(*line, "--check")["status"] == "checked"
    assert run(*line, "--bundle", "/nowhere")["error"].startswith("/nowhere: no model bundle")
    assert run(*line, "--uninstall")["status"] == "uninstalled"


def test_quiet_says_nothing_when_all_is_well(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(tmp_path, bundle)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_no_colours_but_on_a_terminal(
    tmp_path: Path,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    main(arguments(tmp_path, bundle, "--standalone", "--dry-run"))
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(arguments(tmp_path, bundle, "--standalone", "--dry-run"))
    assert "\x1b[32m" in capsys.readouterr().out


def test_uninstall_of_a_standalone_server(tmp_path: Path, bundle: Path) -> None:
    before = state(tmp_path)
    server = installed(tmp_path, bundle, "--warmup")
    assert main([*server, "--uninstall"]) == 0
    assert state(tmp_path) == before


def test_a_standalone_configuration_that_was_changed_is_kept(tmp_path: Path, bundle: Path) -> None:
    server = installed(tmp_path, bundle)
    config = tmp_path / "config" / "config.xml"
    config.write_text(config.read_text().replace("9000", "9900"))
    assert main([*server, "--prefix", "x_"]) == 0
    assert main([*server, "--uninstall"]) == 0
    assert "9900" in config.read_text()


def test_which_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--config-dir", str(tmp_path / "config"), "--data-dir", str(tmp_path / "data")]
    assert main(["--standalone", *folders]) == 1
    assert "which model?" in capsys.readouterr().err
    assert main(["--standalone", *folders, "--pretrained", "openai"]) == 1
    assert "need --model" in capsys.readouterr().err
    assert main(["--standalone", *folders, "--model", "ViT-B-32"]) == 1
    assert "--model needs its weights" in capsys.readouterr().err


def test_without_torch_it_says_how_to_make_the_model_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    folders = ["--config-dir", str(tmp_path / "config"), "--data-dir", str(tmp_path / "data")]
    before = state(tmp_path)
    model = ["--model", "ViT-B-32", "--pretrained", "openai"]
    assert main(["--standalone", *folders, *model]) == 1
    message = capsys.readouterr().err
    assert "clip-bundle export --model ViT-B-32 --pretrained openai" in message
    assert state(tmp_path) == before


@pytest.mark.parametrize("fails", [False, True])
def test_exports_the_model_where_torch_is(
    tmp_path: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: bool,
) -> None:
    def export(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[-6:-2] == ["--model", "ViT-B/32", "--pretrained", "openai"]
        if not fails:
            shutil.copytree(bundle, command[-1])
        return subprocess.CompletedProcess(command, int(fails), "", "first\nno such tag")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    monkeypatch.setattr("clickhouse_clip.installer.model.subprocess.run", export)
    server = ["--config-dir", str(tmp_path / "config")]
    line = [*server, "--data-dir", str(tmp_path / "data"), "--standalone"]
    line += ["--model", "ViT-B/32", "--pretrained", "openai"]
    before = state(tmp_path)
    assert main([*line, "--dry-run"]) == 2
    assert state(tmp_path) == before
    assert main(line) == int(fails)
    if fails:
        assert "cannot be exported: no such tag" in capsys.readouterr().err
    else:
        made = tmp_path / "data" / "clickhouse-clip" / "bundles" / "ViT-B-32-openai"
        assert load_settings(tmp_path).bundle == made
        assert main(line) == 0  # and is not exported again
        assert main([*server, "--uninstall"]) == 0
    assert state(tmp_path) == before


def test_root_writes_below_it_what_the_running_system_will_see(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image"
    etc = image / "etc" / "clickhouse-server"
    etc.mkdir(parents=True)
    (etc / "config.xml").write_text("<clickhouse><path>/var/lib/clickhouse/</path></clickhouse>")
    (image / "etc" / "passwd").write_text("clickhouse:x:101:102::/nonexistent:/bin/false\n")
    units = image / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    (units / "clickhouse-server.service").write_text("[Service]\nUser=clickhouse\n")
    shutil.copytree(bundle, image / "srv" / "clip")
    before = state(image)
    line = ["--root", str(image), "--bundle", "/srv/clip"]
    assert main(line) == 1
    assert "name its interpreter" in capsys.readouterr().err
    python = image / "opt" / "clip" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python-of-the-image")
    line += ["--python", "/opt/clip/bin/python3"]
    assert main(line) == 0
    settings = Settings.load(etc / "clickhouse-clip" / "settings.json")
    assert settings.bundle == Path("/srv/clip")
    assert settings.image_roots == (Path("/var/lib/clickhouse/user_files"),)
    launcher = image / "var/lib/clickhouse/user_scripts/encode_text.py"
    assert launcher.read_text().startswith("#!/opt/clip/bin/python3 -I\n")
    assert str(tmp_path) not in launcher.read_text()
    for file in (*etc.rglob("*.xml"), *etc.rglob("*.json")):
        assert str(tmp_path) not in file.read_text(), file
    if os.geteuid() == 0:
        assert (launcher.stat().st_uid, launcher.stat().st_gid) == (101, 102)
        assert (image / "var").stat().st_uid == 0
    assert main([*line, "--dry-run"]) == 0
    assert main(["--root", str(image), "--uninstall"]) == 0
    shutil.rmtree(image / "opt")
    assert state(image) == before


def test_a_name_that_is_taken_stops_the_plan(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES["stock of 26"].write(tmp_path / "config", tmp_path / "data")
    theirs = tmp_path / "config" / "my_function.yaml"
    theirs.write_text("function:\n  - name: other\n  - name: encode_text\n")
    before = state(tmp_path)
    for options in ([], ["--dry-run"], ["--force"]):
        assert main(arguments(tmp_path, bundle, *options)) == 1
        message = capsys.readouterr().err
        assert f"encode_text ({theirs})" in message
        assert "--prefix" in message
        assert state(tmp_path) == before
    assert main(arguments(tmp_path, bundle, "--prefix", "clip_")) == 0


def test_a_name_that_create_function_took(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES["stock of 26"].write(tmp_path / "config", tmp_path / "data")
    (tmp_path / "data" / "user_defined").mkdir()
    (tmp_path / "data" / "user_defined" / "function_encode_image.sql").touch()
    assert main(arguments(tmp_path, bundle)) == 1
    assert "encode_image (CREATE FUNCTION" in capsys.readouterr().err


def test_warm_up_that_could_keep_the_server_from_starting_is_refused(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TREES["stock of 26"].write(tmp_path / "config", tmp_path / "data")
    (tmp_path / "config" / "config.d").mkdir()
    (tmp_path / "config" / "config.d" / "s.xml").write_text(
        "<clickhouse><startup_scripts><throw_on_error>1</throw_on_error></startup_scripts></clickhouse>"
    )
    assert main(arguments(tmp_path, bundle, "--warmup")) == 1
    assert "throw_on_error" in capsys.readouterr().err
    assert main(arguments(tmp_path, bundle)) == 0


def test_interrupted_it_undoes_what_it_began(
    tmp_path: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("clickhouse_clip.installer.disk.rename", interrupt)
    before = state(tmp_path)
    assert main(arguments(tmp_path, bundle, "--standalone")) == 1
    assert "interrupted; everything is as it was before" in capsys.readouterr().err
    assert state(tmp_path) == before


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


def test_the_administrators_page_names_options_that_exist() -> None:
    page = (Path(__file__).parents[3] / "docs" / "dba.md").read_text()
    help_text = _parser().format_help()
    commands = re.findall(r"install-udfs((?: +--?[^|`\n]*)?)", page)
    named = set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(commands)))
    named |= set(re.findall(r"`(--[a-z-]+)", page))
    assert len(named) > 10
    assert {option for option in named if option not in help_text} == set()


def test_a_configuration_that_this_user_may_not_read(
    tmp_path: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    assert main(arguments(tmp_path, bundle)) == 1
    message = capsys.readouterr().err
    assert "Permission denied; run install-udfs as root (sudo)" in message
