"""The user and group that the server runs as: whatever is placed is given to them.

A server refuses to start on a data folder that belongs to anybody else, so the folder's owner is
the truth where there is one. A server that has never run is known by its service's unit file.
"""

from __future__ import annotations

import configparser
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.installer.root import Root
from clickhouse_clip.udf.errors import InstallError

_UNIT = "clickhouse-server.service"

#: Where systemd looks for units, what counts most first.
_UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system")


@dataclass(frozen=True, slots=True)
class Owner:
    """A user and a group by their numbers; `source` says how they were found."""

    uid: int
    gid: int
    source: str


def find_owner(data_dir: Path, root: Root) -> Owner | None:
    """The server's user and group, or None if nothing says who they are."""
    by_unit = _from_unit(root)
    try:
        status = root.at(data_dir).stat()
    except OSError:
        return by_unit
    if by_unit is not None and by_unit.uid == status.st_uid:
        return by_unit
    return Owner(status.st_uid, status.st_gid, f"owner of {data_dir}")


def may(owner: Owner, path: Path, access: int) -> bool:
    """Whether `owner` may reach `path` and has `access` (`os.R_OK`, `os.X_OK`) to it.

    Where an access list has a say, yes: only the kernel could tell.
    """
    target = path.resolve()
    if owner.uid == 0:
        return target.exists()
    try:
        groups = {owner.gid, *os.getgrouplist(pwd.getpwuid(owner.uid).pw_name, owner.gid)}
    except KeyError:
        groups = {owner.gid}
    try:
        for folder in target.parents:
            if not _bits(owner.uid, groups, folder) & os.X_OK:
                return False
        return _bits(owner.uid, groups, target) & access == access
    except OSError:
        return False


def _bits(uid: int, groups: set[int], path: Path) -> int:
    status = path.stat()
    if "system.posix_acl_access" in os.listxattr(path):
        return 7
    if status.st_uid == uid:
        return status.st_mode >> 6 & 7
    if status.st_gid in groups:
        return status.st_mode >> 3 & 7
    return status.st_mode & 7


def _from_unit(root: Root) -> Owner | None:
    user = group = ""
    unit = None
    for file in _unit_files(root):
        service = _service_section(file)
        # An instruction in a drop-in comes later and wins.
        user, group = service.get("User", user), service.get("Group", group)
        unit = file
    if unit is None or not user:
        return None
    entry = _entry(root, "passwd", user)
    if entry is None:
        raise InstallError(f"{unit}: User={user}, and there is no such user; make it first")
    gid = int(entry[3])
    if group:
        line = _entry(root, "group", group)
        if line is None:
            raise InstallError(f"{unit}: Group={group}, and there is no such group; make it first")
        gid = int(line[2])
    return Owner(int(entry[2]), gid, f"User= in {root.seen(unit)}")


def _unit_files(root: Root) -> Iterator[Path]:
    folders = [root.at(Path(folder)) for folder in _UNIT_FOLDERS]
    for folder in folders:
        if (folder / _UNIT).is_file():
            yield folder / _UNIT
            break
    else:
        return
    for folder in reversed(folders):
        yield from sorted((folder / f"{_UNIT}.d").glob("*.conf"))


def _service_section(file: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(file.read_text(errors="replace"))
    except (OSError, configparser.Error):
        return {}
    return {
        name: value or ""
        for name, value in (parser.items("Service") if parser.has_section("Service") else ())
    }


def _entry(root: Root, database: str, name: str) -> list[str] | None:
    """A line of /etc/passwd or /etc/group; by number too, which units may name."""
    try:
        text = root.at(Path("/etc") / database).read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and name in (fields[0], fields[2]):
            return fields
    return None
