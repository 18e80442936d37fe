"""The only module that writes: puts a plan's files in place, each of them whole or not at all.

A file is staged beside its target, with its mode and owner, and renamed over it. A file that is
there already and was not placed by an earlier run is never overwritten. What is about to be placed
is noted first, so that a run that was interrupted finds its own files again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from typing import Literal

from clickhouse_clip.installer.plan import FileToPlace, Plan
from clickhouse_clip.udf.errors import InstallError

Owner = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of one file."""

    file: FileToPlace
    change: Literal["new", "changed", "unchanged"]


def place(plan: Plan, owner: Owner | None) -> tuple[Placed, ...]:
    """Carry `plan` out; `owner` (uid, gid) is given to whatever is made, None leaves it as it is.

    Raises `InstallError` before anything is written if a file is in the way, and for the first path
    that cannot be written.
    """
    try:
        return _place(plan, owner)
    except OSError as error:
        raise InstallError(
            f"{error.filename}: {error.strerror}; run install-udfs as a user who may write there, "
            "and again after an interruption: it goes on where it stopped"
        ) from error


def _place(plan: Plan, owner: Owner | None) -> tuple[Placed, ...]:
    recorded = _read_record(plan.record)
    changes = tuple(Placed(file, _compare(file, owner)) for file in plan.files)
    for entry in changes:
        path = entry.file.path
        if entry.change == "changed" and str(path) not in recorded:
            raise InstallError(
                f"{path}: is there already and was not placed by install-udfs; move it away, or "
                "remove it if it is from an older set-up of these functions"
            )
    for directory in plan.directories:
        _make_directory(directory, owner)
    record = FileToPlace(
        plan.record,
        _record_text(
            recorded | {str(file.path): _digest(file.content.encode()) for file in plan.files}
        ),
        0o644,
        "what install-udfs placed",
    )
    for file in (record, *(entry.file for entry in changes if entry.change != "unchanged")):
        if _compare(file, owner) != "unchanged":
            _replace(file, owner)
    return changes


def _compare(file: FileToPlace, owner: Owner | None) -> Literal["new", "changed", "unchanged"]:
    try:
        status = file.path.lstat()
    except FileNotFoundError:
        return "new"
    same = (
        stat.S_ISREG(status.st_mode)
        and stat.S_IMODE(status.st_mode) == file.mode
        and owner in (None, (status.st_uid, status.st_gid))
        and file.path.read_bytes() == file.content.encode()
    )
    return "unchanged" if same else "changed"


def _make_directory(directory: Path, owner: Owner | None) -> None:
    if directory.is_dir():
        return
    _make_directory(directory.parent, owner)
    directory.mkdir()
    if owner is not None:
        os.chown(directory, *owner)


def _replace(file: FileToPlace, owner: Owner | None) -> None:
    # The leading dot and the ending keep a server, which watches config.d, from reading it.
    descriptor, name = mkstemp(dir=file.path.parent, prefix=f".{file.path.name}.", suffix=".new")
    staged = Path(name)
    try:
        with open(descriptor, "wb") as output:
            output.write(file.content.encode())
            os.fchmod(output.fileno(), file.mode)
            if owner is not None:
                os.fchown(output.fileno(), *owner)
            output.flush()
            os.fsync(output.fileno())
        staged.replace(file.path)
    except BaseException:
        staged.unlink()
        raise
    _sync_directory(file.path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_record(path: Path) -> dict[str, str]:
    """Path to SHA-256 of all that earlier runs placed."""
    try:
        files = json.loads(path.read_bytes())["files"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise InstallError(
            f"{path}: is damaged, so what earlier runs placed is unknown; remove it, then whatever "
            "the next run finds in its way"
        ) from error
    return dict(files)


def _record_text(files: dict[str, str]) -> str:
    return json.dumps({"files": dict(sorted(files.items()))}, indent=2) + "\n"
