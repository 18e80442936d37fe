"""What a plan would change, against what is there and what an earlier run placed. Reads only."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clickhouse_clip.installer import disk
from clickhouse_clip.installer.plan import FileToPlace, Plan
from clickhouse_clip.installer.record import MINIMAL_SERVER, Record
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.transaction import digest
from clickhouse_clip.udf.errors import InstallError

Change = Literal["new", "changed", "unchanged", "kept", "removed"]


@dataclass(frozen=True, slots=True)
class Placed:
    """What becomes of one file.

    `kept` is one that was edited since it was placed, and stays as it is. `before` is what is there
    now, None where that is nothing.
    """

    file: FileToPlace
    change: Change
    before: bytes | None

    def diff(self) -> str:
        """The change as a unified diff; empty if only mode or owner change."""
        after = "" if self.change == "removed" else self.file.content
        lines = difflib.unified_diff(
            (self.before or b"").decode(errors="replace").splitlines(keepends=True),
            after.splitlines(keepends=True),
            "/dev/null" if self.before is None else str(self.file.path),
            "/dev/null" if self.change == "removed" else str(self.file.path),
        )
        return "".join(lines)


def compare(
    plan: Plan, record: Record | None, root: Root, ids: disk.Ids | None, *, force: bool
) -> tuple[Placed, ...]:
    """What carrying out `plan` means, and for files of an earlier run that it has no use for.

    `force` replaces edited files too. Raises `InstallError` for files that are somebody else's.
    """
    recorded = {} if record is None else record.files
    placed = []
    foreign = []
    for file in plan.files:
        path = root.at(file.path)
        state = _state(path, file, ids)
        change: Change = state
        if state == "changed":
            known = recorded.get(str(file.path))
            if known is None or _is_folder(path):
                foreign.append(path)
            elif not (force or file.keeps_edits or _is_content(path, known)):
                change = "kept"
        placed.append(Placed(file, change, _content(path)))
    if foreign:
        raise InstallError(
            f"{', '.join(map(str, foreign))}: is there already and was not placed by install-udfs; "
            "move it away, or remove it if it is from an older set-up of these functions"
        )
    # A minimal server's configuration is not rendered again, and is not obsolete either.
    wanted = {plan.server.config_dir / MINIMAL_SERVER, *(file.path for file in plan.files)}
    return (*placed, *obsolete(record, wanted, root, force=force))


def obsolete(
    record: Record | None, wanted: Collection[Path], root: Root, *, force: bool
) -> Iterator[Placed]:
    """Files of an earlier run that are not `wanted` any more: removed, or kept if edited."""
    for name, known in ({} if record is None else record.files).items():
        path = root.at(Path(name))
        if Path(name) in wanted or not (path.exists() or path.is_symlink()):
            continue
        file = FileToPlace(Path(name), "", 0, "of an earlier installation")
        removable = (force or _is_content(path, known)) and not _is_folder(path)
        yield Placed(file, "removed" if removable else "kept", _content(path))


def _state(
    path: Path, file: FileToPlace, ids: disk.Ids | None
) -> Literal["new", "changed", "unchanged"]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return "new"
    same = (
        stat.S_ISREG(status.st_mode)
        and stat.S_IMODE(status.st_mode) == file.mode
        and ids in (None, (status.st_uid, status.st_gid))
        and path.read_bytes() == file.content.encode()
    )
    return "unchanged" if same else "changed"


def _is_content(path: Path, known: str) -> bool:
    """Whether `path` is a file that holds just what was placed."""
    return not path.is_symlink() and path.is_file() and digest(path.read_bytes()) == known


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None
