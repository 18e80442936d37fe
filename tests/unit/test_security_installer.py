"""The installer runs as root in folders of the server's user, who may have planted something."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clickhouse_clip.installer import disk, transaction
from clickhouse_clip.installer.transaction import Change
from clickhouse_clip.udf.errors import InstallError


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "shadow"
    file.write_text("root:hash")
    file.chmod(0o600)
    return file


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    return tmp_path / "scripts"


def place(folder: Path, target: Path, found: list[str]) -> None:
    def look() -> None:
        found.extend(file.read_text() for file in target.parent.iterdir())

    transaction.apply(folder, (), [Change(target, b"new", 0o755)], (), look)


def test_the_target_of_a_planted_link_is_not_copied(
    secret: Path, scripts: Path, tmp_path: Path
) -> None:
    target = scripts / "encode_text.py"
    target.symlink_to(secret)
    found: list[str] = []
    with pytest.raises(InstallError, match="is a symbolic link"):
        place(tmp_path, target, found)
    assert found == []
    assert target.is_symlink()


def test_a_link_planted_after_the_first_look_is_not_copied_either(
    secret: Path, scripts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = scripts / "encode_text.py"
    target.write_text("old")
    write = disk.write

    def plant(path: Path, *options: object) -> None:
        if transaction.JOURNAL in path.name and not target.is_symlink():
            target.unlink()
            target.symlink_to(secret)
        write(path, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(disk, "write", plant)
    found: list[str] = []
    with pytest.raises(InstallError, match="is a symbolic link"):
        place(tmp_path, target, found)
    assert found == []
    assert [file.name for file in scripts.iterdir()] == ["encode_text.py"]


@pytest.mark.parametrize("plant", [os.symlink, os.link])
@pytest.mark.parametrize("suffix", ["new", "old"])
def test_nothing_is_written_through_what_was_planted(
    secret: Path, scripts: Path, tmp_path: Path, plant: object, suffix: str
) -> None:
    target = scripts / "encode_text.py"
    target.write_text("old")
    plant(secret, scripts / f".encode_text.py.clickhouse-clip-{suffix}")  # type: ignore[operator]
    place(tmp_path, target, [])
    assert target.read_text() == "new"
    assert secret.read_text() == "root:hash"
    assert secret.stat().st_mode & 0o777 == 0o600
