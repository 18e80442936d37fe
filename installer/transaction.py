"""Changes several files as one: all of them, or none.

What is about to be done is noted in a journal before anything is touched, and a copy of every file
that is to be replaced or removed is kept beside it until all is done. A step that fails is undone
at once; after a crash or a `kill -9` the next run reads the journal and undoes it first.

    journal: open   ->  make folders, copy, stage, swap   ->   journal: done   ->  remove the copies

Until the journal says `done`, undoing restores every file with its bytes, mode, owner and time;
once it does, what is left to do is finished instead.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clickhouse_clip.installer import disk
from clickhouse_clip.udf.errors import InstallError

#: Lies in the configuration folder; the dot keeps it from being anything to a server.
JOURNAL = ".clickhouse-clip.journal"

#: A folder to be made, and who (uid, gid) gets it.
Folder = tuple[Path, disk.Ids | None]


_REMEDIES = {
    errno.ENOSPC: "make room on that filesystem",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EROFS: "that filesystem is mounted read-only; remount it for the installation",
    errno.EACCES: "run install-udfs as root (sudo), or as the server's user",
    errno.EPERM: "run install-udfs as root; if it is, lsattr shows whether the file is immutable",
    errno.EBUSY: "it is a mount of its own, as of a file given to a container; unmount it",
    errno.EXDEV: "it is a mount of its own, as of a file given to a container; unmount it",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One file as it shall be; `content` None removes it. `ids` (uid, gid) None leaves them."""

    path: Path
    content: bytes | None
    mode: int = 0o644
    ids: disk.Ids | None = None

    @property
    def staged(self) -> Path:
        """Where the new file is written. A server reads no file whose name begins with a dot."""
        return self.path.with_name(f".{self.path.name}.clickhouse-clip-new")


@dataclass(frozen=True, slots=True)
class _Before:
    """A file as it was, or that there was none, and what is going to take its place."""

    path: str
    new_sha256: str | None
    sha256: str | None = None
    mode: int = 0
    uid: int = 0
    gid: int = 0

    @property
    def copy(self) -> Path:
        path = Path(self.path)
        return path.with_name(f".{path.name}.clickhouse-clip-old")


def apply(
    folder: Path,
    make: Sequence[Folder],
    changes: Sequence[Change],
    remove: Sequence[Path],
    check: Callable[[], None],
) -> None:
    """Make the folders `make`, carry out `changes` in their order, remove `remove` where empty.

    The journal lies in `folder`. `check` is called when everything is in place; what it raises is
    raised here, after all has been undone. `lock` must be held.
    """
    before = [_look(change) for change in changes]
    journal = {
        "made": [str(path) for path, _ in make],
        "before": [asdict(entry) for entry in before],
        "remove": [str(path) for path in remove],
    }
    try:
        _write_journal(folder, {"state": "open", **journal})
        for path, ids in make:
            disk.make_folder(path, ids)
        for entry in before:
            if entry.sha256 is not None:
                _copy(entry)
        for change in changes:
            if change.content is not None:
                disk.write(change.staged, change.content, change.mode, change.ids, None)
        for change in changes:
            if change.content is not None:
                disk.rename(change.staged, change.path)
            else:
                disk.remove(change.path)
        check()
        _write_journal(folder, {"state": "done", **journal})
    except BaseException as failure:
        # A last step that did its work and failed only to say so is no failure.
        if not _is_done(folder):
            try:
                recover(folder)
            except OSError as error:
                raise InstallError(
                    f"{describe(error)}. It is not undone yet: run install-udfs again, which "
                    "undoes it first"
                ) from failure
            raise
    with suppress(OSError):  # what is left is tidied up by the next run
        recover(folder)


def recover(folder: Path) -> Literal["undone", "finished"] | None:
    """End what an interrupted run began, by its journal in `folder`.

    Says how it ended, None if there was nothing to end.
    """
    draft = folder / f"{JOURNAL}.new"
    try:
        # The server's user, whose folder this may be, must not have root undo what it likes.
        writer = (folder / JOURNAL).lstat().st_uid
        if writer != os.geteuid():
            raise InstallError(
                f"{folder / JOURNAL}: a run of user {writer} was interrupted; run install-udfs as "
                "that user, or remove the file if nobody knows of it"
            )
        journal = json.loads((folder / JOURNAL).read_bytes())
    except FileNotFoundError:
        disk.remove(draft)
        return None
    before = [_Before(**entry) for entry in journal["before"]]
    if journal["state"] == "done":
        for entry in before:
            disk.remove(entry.copy)
        for path in journal["remove"]:
            disk.remove_folder(Path(path))
    else:
        for entry in reversed(before):
            _undo(entry)
        for path in reversed(journal["made"]):
            disk.remove_folder(Path(path))
    disk.remove(draft)
    disk.remove(folder / JOURNAL)
    return "finished" if journal["state"] == "done" else "undone"


def _is_done(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / JOURNAL).read_bytes())["state"] == "done")
    except OSError:
        return False


def interrupted(folder: Path) -> bool:
    """Whether an earlier run was interrupted, so that `recover` has something to do."""
    return (folder / JOURNAL).is_file()


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a second run away from the configuration in `folder` until the block ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InstallError(
                f"{folder}: another install-udfs is at work there; wait until it has finished"
            ) from error
        yield
    finally:
        os.close(descriptor)


def describe(error: OSError) -> str:
    """What a failed system call means to a person: where, what, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "look at that filesystem's state (dmesg)")
    return f"{error.filename2 or error.filename}: {error.strerror}; {remedy}"


def _look(change: Change) -> _Before:
    new = None if change.content is None else digest(change.content)
    try:
        content, status = _read(change.path)
    except FileNotFoundError:
        return _Before(str(change.path), new)
    mode = stat.S_IMODE(status.st_mode)
    return _Before(str(change.path), new, digest(content), mode, status.st_uid, status.st_gid)


def _copy(entry: _Before) -> None:
    content, status = _read(Path(entry.path))
    # Nobody but root gives files away, and a file of this user's is copied as this user's.
    ids = (status.st_uid, status.st_gid) if os.geteuid() == 0 else None
    disk.write(entry.copy, content, stat.S_IMODE(status.st_mode), ids, status.st_mtime_ns)


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """A file's bytes, and what it is, of one and the same file.

    The folder may be the server's user's, who could put a link to any file of root's there: a copy
    of that would be theirs. So no link is followed. Raises `InstallError` for one, `OSError`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InstallError(f"{path}: is a symbolic link, and none is replaced; remove it") from None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(), os.fstat(descriptor)


def _undo(entry: _Before) -> None:
    path = Path(entry.path)
    disk.remove(Change(path, None).staged)
    try:
        now = _look(Change(path, None))
    except (OSError, InstallError):
        now = None
    if entry.sha256 is None:
        # What somebody else has put there in the meantime is theirs.
        if now is not None and now.sha256 == entry.new_sha256:
            disk.remove(path)
    elif now == _Before(entry.path, None, entry.sha256, entry.mode, entry.uid, entry.gid):
        disk.remove(entry.copy)  # which may have been written only in part
    elif entry.copy.exists():
        disk.rename(entry.copy, path)


def _write_journal(folder: Path, journal: dict[str, Any]) -> None:
    draft = folder / f"{JOURNAL}.new"
    disk.write(draft, json.dumps(journal).encode(), 0o600, None, None)
    disk.rename(draft, folder / JOURNAL)


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
