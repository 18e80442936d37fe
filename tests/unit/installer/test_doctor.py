"""`--check`: each thing that can go wrong is found, and has a remedy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.installer.cli import main
from clickhouse_clip.installer.surroundings import Mount, Surroundings
from clickhouse_clip.installer.transaction import JOURNAL
from clickhouse_clip.udf.bundle import FILES, MANIFEST, describe_file, load_manifest
from tests.server_trees import TREES, state

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def bundle(bundle: Path) -> Path:
    """A whole bundle, if not one that could encode anything."""
    from dataclasses import replace

    manifest = load_manifest(bundle)
    for name in FILES:
        (bundle / name).write_text(name)
    files = {name: describe_file(bundle / name) for name in FILES}
    (bundle / MANIFEST).write_bytes(replace(manifest, files=files).to_json())
    return bundle


@pytest.fixture
def etc(tmp_path: Path, bundle: Path) -> Path:
    etc = tmp_path / "etc"
    TREES["stock of 26"].write(etc, tmp_path / "data")
    assert main(["--bundle", str(bundle), "--config-dir", str(etc), "--quiet", "--warmup"]) == 0
    return etc


@pytest.fixture
def check(etc: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    def run(code: int = 1) -> dict[str, Any]:
        capsys.readouterr()
        assert main(["--check", "--config-dir", str(etc), "--json"]) == code
        findings = json.loads(capsys.readouterr().out)["findings"]
        wrong = [finding for finding in findings if finding["level"] != "ok"]
        assert all(finding["remedy"] for finding in wrong if finding["level"] != "note")
        return {finding["message"]: finding for finding in wrong}

    return run


def only(findings: dict[str, Any], text: str) -> dict[str, Any]:
    (message,) = [message for message in findings if text in message]
    found: dict[str, Any] = findings[message]
    return found


def test_all_is_well(check: Check, tmp_path: Path) -> None:
    before = state(tmp_path)
    findings = check(0)
    assert list(findings) == [
        "no server answers at localhost:8123: the functions load when it starts"
    ]
    assert state(tmp_path) == before


def test_nothing_installed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TREES["stock of 26"].write(tmp_path / "other", tmp_path / "data")
    assert main(["--check", "--config-dir", str(tmp_path / "other")]) == 1
    assert "nothing is installed there" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["functions.xml", "encode_text.py"])
def test_lost_files(check: Check, tmp_path: Path, lost: str) -> None:
    (file,) = tmp_path.glob(f"*/*/{lost}")
    file.unlink()
    assert only(check(), f"{file}: No such file")["remedy"] == "run install-udfs again"


def test_edited_and_closed_files(check: Check, tmp_path: Path) -> None:
    launcher = tmp_path / "data" / "user_scripts" / "encode_text.py"
    launcher.write_text(launcher.read_text() + "#")
    assert "--force" in only(check(0), "was edited")["remedy"]
    launcher.chmod(0o644)
    assert only(check(), "has mode 644, not 755")


def test_drop_in_that_has_no_effect(check: Check, etc: Path) -> None:
    (etc / "config.d" / "clickhouse-clip.xml").write_text("<clickhouse/>")
    assert "run install-udfs again" in only(check(), "does not name")["remedy"]


def test_second_definition(check: Check, etc: Path) -> None:
    (etc / "x_function.xml").write_text(
        "<functions><function><name>encode_text</name></function></functions>"
    )
    assert "--prefix" in only(check(), "encode_text: is defined a second time")["remedy"]


def test_warm_up_beside_throw_on_error(check: Check, etc: Path) -> None:
    (etc / "config.d" / "s.xml").write_text(
        "<clickhouse><startup_scripts><throw_on_error>1</throw_on_error></startup_scripts>"
        "</clickhouse>"
    )
    assert "--no-warmup" in only(check(0), "throw_on_error")["remedy"]


def change_record(etc: Path, **values: str) -> None:
    file = etc / "clickhouse-clip" / "installed.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_python_is_gone(check: Check, etc: Path) -> None:
    change_record(etc, interpreter="/nowhere/bin/python3")
    assert "install the package again" in only(check(), "Broken pipe")["remedy"]


def test_python_without_the_package(check: Check, etc: Path, tmp_path: Path) -> None:
    broken = tmp_path / "python3"
    broken.write_text("#!/bin/sh\necho 'No module named clickhouse_clip' >&2\nexit 1\n")
    broken.chmod(0o755)
    change_record(etc, interpreter=str(broken))
    assert "pip install" in only(check(), "cannot load the package: No module")["remedy"]


def test_bundle(check: Check, bundle: Path) -> None:
    (bundle / "text.bin").write_text("text-bin")
    assert "--bundle" in only(check(), "SHA-256")["remedy"]
    shutil.rmtree(bundle)
    assert only(check(), "no model bundle")


def test_settings(check: Check, etc: Path) -> None:
    (etc / "clickhouse-clip" / "settings.json").write_text("{}")
    assert "correct it" in only(check(), "bundle: missing")["remedy"]


def test_runtime_folder_of_somebody_else(check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "clickhouse-clip" / "run"
    folder.mkdir(mode=0o755)
    assert only(check(), "must belong to the server's user alone")["remedy"].startswith("rm -r")


def test_last_errors_of_the_log(check: Check, tmp_path: Path) -> None:
    log = tmp_path / "data" / "clickhouse-clip" / "log" / "encoder.log"
    log.parent.mkdir()
    log.write_text("a INFO 1 fine\nb ERROR 1 bad\nc ERROR 1 worse\n")
    assert [message for message in check(0) if "in the log" in message] == [
        "in the log: b ERROR 1 bad",
        "in the log: c ERROR 1 worse",
    ]


def test_interrupted_run(check: Check, etc: Path) -> None:
    (etc / JOURNAL).write_text("{}")
    assert "undoes" in only(check(), "interrupted")["remedy"]


def test_noexec_and_selinux(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = Mount(tmp_path, "xfs", frozenset(["rw", "noexec"]))
    monkeypatch.setattr(
        "clickhouse_clip.installer.commands.look_around", lambda: Surroundings((mount,), True)
    )
    findings = check()
    assert "without noexec" in only(findings, "mounted noexec")["remedy"]
    assert only(findings, "SELinux")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_the_servers_user_cannot_read(check: Check, tmp_path: Path, bundle: Path) -> None:
    os.chown(tmp_path / "data", 1234, 5678)
    findings = check()
    assert str(bundle) in only(findings, "the server's user 1234 may not read it")["remedy"]
