"""Every system call of an installation made to fail, and the process killed at every one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.installer import disk
from clickhouse_clip.installer.cli import main
from clickhouse_clip.installer.place import prepared
from clickhouse_clip.installer.transaction import JOURNAL, digest, lock, recover
from clickhouse_clip.udf.errors import InstallError
from tests.server_trees import TREES, State, state

#: The system calls by which `disk` changes anything, and those that a full disk refuses.
WRITING = (
    *("open", "write", "fchown", "fchmod", "utime", "fsync", "replace", "unlink"),
    *("mkdir", "chmod", "chown", "rmdir"),
)
NEEDS_ROOM = ("write", "mkdir")


class FaultyOs:
    """Stands for `os` in `disk`; calls `fault` instead of the system call whose turn it is."""

    def __init__(self, fault: Callable[[int], bool], names: Collection[str]) -> None:
        self.calls = 0
        self._fault = fault
        self._names = names

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in WRITING:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if name in self._names and self._fault(self.calls):
                where = next((str(a) for a in arguments if isinstance(a, (str, Path))), "a file")
                raise OSError(errno.ENOSPC, "No space left on device", where)
            # A real fsync only makes the tests slow.
            return None if name == "fsync" else real(*arguments, **options)

        return call


@contextmanager
def faults(
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[int], bool],
    names: Collection[str] = WRITING,
) -> Iterator[FaultyOs]:
    faulty = FaultyOs(fault, names)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "os", faulty)
        yield faulty


#: What is run, and what has been run before it.
COMMANDS = {
    "install": (["--warmup"], None),
    "standalone": (["--standalone", "--warmup"], None),
    "upgrade": (["--prefix", "x_", "--no-warmup"], ["--warmup"]),
    "uninstall": (["--uninstall"], ["--warmup"]),
}


class Case:
    """A server, a command for it, and its state before and after that command."""

    def __init__(self, name: str, folder: Path, bundle: Path) -> None:
        self.name = name
        self.server = folder / "server"
        self.etc = self.server / "etc"
        self._pristine = folder / "pristine"
        arguments, earlier = COMMANDS[name]
        model = ["--bundle", str(bundle)]
        TREES["stock of 26"].write(self.etc, self.server / "data")
        if name == "standalone":
            self.etc = self.server / "fresh" / "etc"
            model += ["--data-dir", str(self.server / "fresh" / "data")]
        folders = ["--config-dir", str(self.etc), "--quiet"]
        if earlier is not None:
            assert main([*model, *folders, *earlier]) == 0
        self.command = [*arguments, *folders, *([] if name == "uninstall" else model)]
        shutil.copytree(self.server, self._pristine, symlinks=True)
        self.before = state(self.server)
        assert main(self.command) == 0
        self.after = state(self.server)
        assert self.after != self.before
        self.restore()

    def restore(self) -> None:
        if state(self.server) != self.before:
            shutil.rmtree(self.server)
            shutil.copytree(self._pristine, self.server, symlinks=True)
            assert state(self.server) == self.before

    def is_as(self, wanted: State, *, folders: bool = True) -> bool:
        """Whether the server is in a state; without `folders`, empty ones may be left."""

        def files(of: State) -> dict[str, Any]:
            return {name: e for name, e in of.entries.items() if folders or e[0] != "folder"}

        return files(state(self.server)) == files(wanted)


@pytest.fixture(params=COMMANDS)
def case(request: pytest.FixtureRequest, tmp_path: Path, bundle: Path) -> Case:
    return Case(request.param, tmp_path, bundle)


def tidy_up(case: Case) -> None:
    """What the next run begins with."""
    if case.etc.is_dir():
        with prepared(case.etc, None):
            pass


def test_every_call_that_fails_leaves_everything_as_it_was(
    case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undone = 0
    for number in range(1, count_calls(case, monkeypatch) + 1):
        with faults(monkeypatch, lambda call, number=number: call == number):
            code = main(case.command)
        if code:
            assert "No space left on device; make room" in capsys.readouterr().err
            assert case.is_as(case.before), f"call {number}"
            undone += 1
        else:
            # Everything was in place and noted as such: only the tidying up was disturbed.
            tidy_up(case)
            assert case.is_as(case.after, folders=case.name != "uninstall"), f"call {number}"
            case.restore()
    assert undone > 30


def test_a_disk_that_stays_full_leaves_everything_as_it_was(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = count_calls(case, monkeypatch)
    for number in range(1, total):
        with faults(monkeypatch, lambda call, number=number: call >= number, NEEDS_ROOM):
            code = main(case.command)
        if code:
            assert case.is_as(case.before), f"call {number}"
        else:
            tidy_up(case)
            assert case.is_as(case.after)
            case.restore()


def test_a_disk_that_fails_altogether_is_put_right_by_the_next_run(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, count_calls(case, monkeypatch)):
        with faults(monkeypatch, lambda call, number=number: call >= number):
            code = main(case.command)
        tidy_up(case)
        expected = case.before if code else case.after
        # Folders that were made before the journal could be, or whose removal it does not know.
        folders = case.name in ("install", "upgrade")
        assert case.is_as(expected, folders=folders), f"call {number}"
        case.restore()


def test_killed_at_every_call(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    undone = finished = 0
    for number in range(1, count_calls(case, monkeypatch)):

        def kill(call: int, number: int = number) -> bool:
            if call == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        if (child := os.fork()) == 0:
            try:
                with faults(monkeypatch, kill):
                    main(case.command)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        tidy_up(case)
        folders = case.name in ("install", "upgrade")
        if case.is_as(case.before, folders=folders):
            undone += 1
        else:
            assert case.is_as(case.after, folders=folders), f"call {number}"
            finished += 1
        case.restore()
    assert undone > 30
    assert finished


def test_what_was_interrupted_is_done_by_the_next_run(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faults(monkeypatch, lambda call: call >= 40):
        main(case.command)
    assert (case.etc / JOURNAL).exists()
    assert main([*case.command, "--dry-run"]) == 2
    assert main(case.command) == 0
    if case.name != "standalone":  # whose folders are not new any more
        assert case.is_as(case.after)


def count_calls(case: Case, monkeypatch: pytest.MonkeyPatch) -> int:
    with faults(monkeypatch, lambda _: False) as faulty:
        assert main(case.command) == 0
    case.restore()
    return faulty.calls


def test_a_second_run_waits_for_nobody(tmp_path: Path, case: Case) -> None:
    case.etc.mkdir(parents=True, exist_ok=True)
    assert tmp_path.exists()
    with lock(case.etc), pytest.raises(InstallError, match="another install-udfs"), lock(case.etc):
        pass


def test_what_others_wrote_meanwhile_is_not_undone(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faults(monkeypatch, lambda call: call >= 60):
        main(case.command)
    others = case.server / "data" / "user_scripts" / "theirs.sh"
    others.write_text("theirs")
    tidy_up(case)
    assert others.read_text() == "theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_journal_of_somebody_else_is_not_believed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    entry = {"path": str(victim), "new_sha256": digest(b"precious")}
    journal = {"state": "open", "made": [], "before": [entry], "remove": []}
    (tmp_path / JOURNAL).write_text(json.dumps(journal))
    os.chown(tmp_path / JOURNAL, 1234, 1234)
    with pytest.raises(InstallError, match="a run of user 1234 was interrupted"):
        recover(tmp_path)
    assert victim.read_text() == "precious"
