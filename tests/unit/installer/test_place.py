from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from clickhouse_clip.installer.place import place
from clickhouse_clip.installer.plan import Plan
from clickhouse_clip.udf.errors import InstallError

State = dict[str, tuple[int, int, bytes]]


def state(root: Path) -> State:
    """Every file below `root`: its mode, its inode and its content."""
    return {
        str(path.relative_to(root)): (path.stat().st_mode, path.stat().st_ino, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


def changed(plan: Plan, name: str, content: str) -> Plan:
    return replace(
        plan,
        files=tuple(
            replace(file, content=content) if file.path.name == name else file
            for file in plan.files
        ),
    )


def test_places_what_is_planned(plan: Plan) -> None:
    placed = place(plan, None)
    assert [entry.file for entry in placed] == list(plan.files)
    assert {entry.change for entry in placed} == {"new"}
    for file in plan.files:
        assert file.path.read_text() == file.content
        assert file.path.stat().st_mode & 0o7777 == file.mode
    assert all(directory.is_dir() for directory in plan.directories)


def test_second_run_writes_nothing(plan: Plan, tmp_path: Path) -> None:
    place(plan, None)
    before = state(tmp_path)
    assert {entry.change for entry in place(plan, None)} == {"unchanged"}
    assert state(tmp_path) == before


def test_only_what_differs_is_replaced(plan: Plan, tmp_path: Path) -> None:
    place(plan, None)
    before = state(tmp_path)
    wrong_mode = plan.files[1].path
    wrong_mode.chmod(0o600)
    placed = place(changed(plan, "functions.xml", "<functions/>"), None)
    assert {entry.file.path.name for entry in placed if entry.change == "changed"} == {
        "functions.xml",
        wrong_mode.name,
    }
    assert wrong_mode.stat().st_mode & 0o777 == 0o755
    after = state(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        "config/clickhouse-clip/functions.xml",
        "config/clickhouse-clip/installed.json",
        f"data/user_scripts/{wrong_mode.name}",
    }


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling symlink"])
def test_a_file_that_is_not_ours_is_never_touched(plan: Plan, tmp_path: Path, kind: str) -> None:
    target = plan.files[1].path
    target.parent.mkdir(parents=True)
    if kind == "file":
        target.write_text("#!/usr/bin/python3\nimport clip\n")
    else:
        target.symlink_to(tmp_path / "elsewhere.py")
    if kind == "symlink":
        (tmp_path / "elsewhere.py").write_text("theirs")
    before = state(tmp_path)
    with pytest.raises(InstallError, match="was not placed by install-udfs"):
        place(plan, None)
    assert state(tmp_path) == before


def test_a_directory_in_the_way_is_refused(plan: Plan) -> None:
    plan.files[1].path.mkdir(parents=True)
    with pytest.raises(InstallError, match="was not placed by install-udfs"):
        place(plan, None)


@pytest.mark.parametrize("fails_at", range(6))
def test_an_interrupted_run_leaves_whole_files_and_is_finished_by_the_next(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    place(plan, None)
    newer = plan
    for file in plan.files:
        newer = changed(newer, file.path.name, file.content + " ")
    real, calls = Path.replace, iter(range(100))

    def failing(self: Path, target: Path) -> Path:
        if next(calls) == fails_at:
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(InstallError, match="No space left on device"):
            place(newer, None)
    for old, new in zip(plan.files, newer.files, strict=True):
        assert old.path.read_text() in (old.content, new.content)
    assert not list(tmp_path.rglob("*.new"))
    place(newer, None)
    assert all(file.path.read_text() == file.content for file in newer.files)


def test_interrupted_first_run_knows_its_own_files_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.replace, iter(range(100))

    def failing(self: Path, target: Path) -> Path:
        if next(calls) == 3:
            raise OSError(5, "Input/output error", str(target))
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(InstallError):
            place(plan, None)
    # Even if the next run would place something else.
    place(changed(plan, plan.files[0].path.name, "{}"), None)


def test_staged_files_are_none_that_a_server_reads(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = []
    real = Path.replace

    def watching(self: Path, target: Path) -> Path:
        staged.append(self)
        assert self.parent == target.parent
        assert self.stat().st_mode & 0o777 in (0o644, 0o755)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", watching)
    place(plan, None)
    assert len(staged) == len(plan.files) + 1
    assert all(path.name.startswith(".") and path.suffix == ".new" for path in staged)


def test_record_names_all_that_was_ever_placed(plan: Plan) -> None:
    place(plan, None)
    fewer = replace(plan, files=plan.files[:2])
    place(fewer, None)
    record = json.loads(plan.record.read_text())["files"]
    assert set(record) == {str(file.path) for file in plan.files}


def test_damaged_record(plan: Plan) -> None:
    place(plan, None)
    plan.record.write_text("[]")
    with pytest.raises(InstallError, match="is damaged"):
        place(plan, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_everything_made_belongs_to_the_owner(plan: Plan, tmp_path: Path) -> None:
    place(plan, (1234, 5678))
    for folder in ("config", "data"):
        for path in (tmp_path / folder, *(tmp_path / folder).rglob("*")):
            assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678), path
    assert {entry.change for entry in place(plan, (1234, 5678))} == {"unchanged"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(plan: Plan, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InstallError, match="as a user who may write there"):
        place(plan, None)
