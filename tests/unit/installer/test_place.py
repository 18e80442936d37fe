from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from clickhouse_clip.installer.cli import main
from clickhouse_clip.installer.record import load_record
from clickhouse_clip.udf.errors import InstallError
from clickhouse_clip.udf.settings import Settings
from tests.server_trees import TREES, state


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    TREES["stock of 26"].write(tmp_path / "etc", tmp_path / "data")
    return tmp_path / "etc"


@pytest.fixture
def install(etc: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> object:
    def run(*options: str, code: int = 0) -> str:
        model = () if "--uninstall" in options else ("--bundle", str(bundle))
        assert main([*model, "--config-dir", str(etc), *options]) == code
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    return tmp_path / "data" / "user_scripts" / "encode_text.py"


def settings_of(etc: Path) -> Settings:
    return Settings.load(etc / "clickhouse-clip" / "settings.json")


def test_modes_and_record(install, etc: Path, launcher: Path) -> None:
    install()
    record = load_record(etc / "clickhouse-clip" / "installed.json")
    assert record is not None
    assert str(launcher) in record.files
    for name in record.files:
        mode = Path(name).stat().st_mode & 0o7777
        assert mode == (0o755 if name.endswith(".py") else 0o644)


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink", "folder"])
def test_what_is_not_ours_is_never_touched(
    install, launcher: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "file":
        launcher.write_text("#!/usr/bin/python3\nimport clip\n")
    elif kind == "folder":
        launcher.mkdir()
    else:
        launcher.symlink_to(tmp_path / "elsewhere.py")
    if kind == "symlink":
        (tmp_path / "elsewhere.py").write_text("theirs")
    before = state(tmp_path)
    for options in ([], ["--force"], ["--dry-run"]):
        assert "was not placed by install-udfs" in install(*options, code=1)
        assert state(tmp_path) == before


def test_an_edited_file_is_reported_and_kept(install, launcher: Path, tmp_path: Path) -> None:
    install()
    launcher.write_text(launcher.read_text() + "# mine\n")
    assert "# mine" in install("--dry-run", "--prefix", "x_", code=2)
    assert "was edited since it was placed, and is kept" in install("--prefix", "x_")
    assert launcher.read_text().endswith("# mine\n")
    # What was not edited is new, and the edited one is still known as such.
    assert "x_encode_text" in (tmp_path / "etc/clickhouse-clip/functions.xml").read_text()
    assert "is kept" in install()
    assert launcher.read_text().endswith("# mine\n")
    install("--force")
    assert "# mine" not in launcher.read_text()


def test_an_edited_file_outlives_uninstalling(install, launcher: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    install()
    launcher.write_text("mine")
    assert "is kept" in install("--uninstall")
    left = set(state(tmp_path).entries) - set(before.entries)
    assert {Path(name).name for name in left} == {
        launcher.name, "clickhouse-clip", "installed.json"
    }  # fmt: skip
    install("--uninstall", "--force")
    assert state(tmp_path) == before


def test_changed_modes_are_put_right(install, launcher: Path) -> None:
    install()
    launcher.chmod(0o600)
    assert "changed" in install()
    assert launcher.stat().st_mode & 0o777 == 0o755


def test_settings_of_an_earlier_run_are_kept(install, etc: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    install("--precision", "fp32", "--image-root", str(tmp_path / "pictures"), "--pool-size", "3")
    install("--prefix", "x_")
    settings = settings_of(etc)
    assert settings.precision == "fp32"
    assert settings.image_roots == (tmp_path / "data" / "user_files", tmp_path / "pictures")
    functions = (etc / "clickhouse-clip" / "functions.xml").read_text()
    assert functions.count("<pool_size>3</pool_size>") == 5


def test_settings_edited_by_hand_are_kept(install, etc: Path) -> None:
    install()
    file = etc / "clickhouse-clip" / "settings.json"
    values = json.loads(file.read_text()) | {"cache_texts": 7}
    file.write_text(json.dumps(values))
    assert "Nothing to do" in install()
    assert file.read_text() == json.dumps(values)
    # An option changes what it names, and nothing else.
    install("--precision", "fp32")
    assert (settings_of(etc).cache_texts, settings_of(etc).precision) == (7, "fp32")


def test_settings_that_cannot_be_read(install, etc: Path) -> None:
    install()
    file = etc / "clickhouse-clip" / "settings.json"
    file.write_text("{}")
    assert "correct it, or let --force make it anew" in install(code=1)
    install("--force")
    assert settings_of(etc).cache_texts == 10_000


def test_what_has_no_use_any_more_is_removed(install, etc: Path) -> None:
    warmup = etc / "config.d" / "zzz-clickhouse-clip-warmup.xml"
    install("--warmup")
    assert warmup.exists()
    install()  # as it was
    assert warmup.exists()
    assert "removed" in install("--no-warmup")
    assert not warmup.exists()


def test_damaged_record(install, etc: Path) -> None:
    install()
    (etc / "clickhouse-clip" / "installed.json").write_text("[]")
    assert "is damaged" in install(code=1)


def test_record_of_a_newer_version_is_read(install, etc: Path) -> None:
    install()
    file = etc / "clickhouse-clip" / "installed.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"of_the_future": 1}))
    install()
    file.write_text(json.dumps(values | {"options": {"of_the_future": 1}}))
    assert "is damaged" in install(code=1)


def test_files_of_a_server_that_watches_are_never_seen_half(
    install, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = []
    real = os.replace

    def watching(path: Path, target: Path) -> None:
        staged.append(path.name)
        assert path.parent == target.parent
        real(path, target)

    monkeypatch.setattr(os, "replace", watching)
    install()
    assert len(staged) > 6
    # ClickHouse reads no file whose name begins with a dot.
    assert all(name.startswith(".") for name in staged)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_everything_made_belongs_to_the_owner_of_the_data(
    install, tmp_path: Path, etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(tmp_path)
    os.chown(tmp_path / "data", 1234, 5678)
    # The test's own folders are closed to that user, and this is said.
    assert "the server's user 1234 may not" in install(code=1)
    monkeypatch.setattr("clickhouse_clip.installer.surroundings.may", lambda *_: True)
    install()
    record = load_record(etc / "clickhouse-clip" / "installed.json")
    assert record is not None
    for name in (*record.files, *record.folders):
        assert (Path(name).stat().st_uid, Path(name).stat().st_gid) == (1234, 5678), name
    assert "Nothing to do" in install()
    install("--uninstall")
    os.chown(tmp_path / "data", 0, 0)
    assert state(tmp_path) == before


def test_a_refused_installation_names_the_reason(install, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    message = install(code=1)
    assert "Permission denied; run install-udfs as root (sudo)" in message
    assert "Everything is as it was before" in message


@pytest.mark.parametrize("name", ["/etc/passwd", "x/config.d/a.xml", "/etc/config.d/../passwd"])
def test_a_record_that_names_what_we_never_place(install, etc: Path, name: str) -> None:
    install()
    file = etc / "clickhouse-clip" / "installed.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"files": {name: "0" * 64}}))
    assert "never places" in install("--uninstall", "--force", code=1)
    file.write_text(json.dumps(values | {"bundles": [name]}))
    assert "never makes" in install("--uninstall", code=1)


def test_record_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "installed.json").mkdir()
    with pytest.raises(InstallError, match="cannot be read"):
        load_record(tmp_path / "installed.json")
