"""What the machine lets an installation do: mounts, SELinux, and who may write and execute where.

`Surroundings` is a value, so what follows from it is tested without such a machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clickhouse_clip.installer.findings import Finding, bad, warning
from clickhouse_clip.installer.owner import Owner, may
from clickhouse_clip.installer.plan import Plan
from clickhouse_clip.installer.root import Root


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem; `options` as the kernel names them."""

    point: Path
    kind: str
    options: frozenset[str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The mounts of a machine, innermost last, and whether SELinux refuses or only warns."""

    mounts: tuple[Mount, ...] = ()
    selinux_enforcing: bool = False

    def mount_of(self, path: Path) -> Mount | None:
        """The filesystem that holds `path`."""
        holding = [mount for mount in self.mounts if path.is_relative_to(mount.point)]
        return max(reversed(holding), key=lambda mount: len(mount.point.parts), default=None)


def look_around() -> Surroundings:
    """The surroundings of this process."""
    try:
        table = Path("/proc/self/mounts").read_text(errors="surrogateescape")
    except OSError:
        table = ""
    try:
        enforcing = Path("/sys/fs/selinux/enforce").read_text().strip() == "1"
    except OSError:
        enforcing = False
    return Surroundings(parse_mounts(table), enforcing)


def parse_mounts(table: str) -> tuple[Mount, ...]:
    """Parse what /proc/self/mounts holds."""
    mounts = []
    for line in table.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        # The kernel writes a space, a tab, a line end and a backslash as octal numbers.
        for number in (0o40, 0o11, 0o12, 0o134):
            point = point.replace(f"\\{number:03o}", chr(number))
        mounts.append(Mount(Path(point), kind, frozenset(options.split(","))))
    return tuple(mounts)


def obstacles(plan: Plan, surroundings: Surroundings, root: Root) -> Iterator[Finding]:
    """What would keep the plan from being carried out, or the server from using what it places."""
    for folder in dict.fromkeys(file.path.parent for file in plan.files):
        yield from _folder_obstacles(root.at(folder), surroundings)
    if root.directory is not None:
        return
    scripts = {file.path.parent for file in plan.files if file.mode & 0o111}
    for folder in sorted(scripts):
        mount = surroundings.mount_of(_nearest(folder))
        if mount is not None and "noexec" in mount.options:
            yield bad(
                f"{folder}: lies on {mount.point}, which is mounted noexec, and ClickHouse "
                "executes scripts there",
                f"mount {mount.point} without noexec, or set user_scripts_path in the server's "
                "configuration to a folder elsewhere",
            )
    if surroundings.selinux_enforcing:
        places = " ".join(str(folder) for folder in (plan.private, *sorted(scripts)))
        yield warning(
            "SELinux is enforcing: it may keep a confined server from executing the launchers",
            f"restorecon -R {places}; where a query is still refused, ausearch -m avc says why",
        )
    owner = plan.owner
    if owner is None:
        return
    if os.geteuid() not in (0, owner.uid):
        yield warning(
            f"what is placed will belong to user {os.geteuid()}, and the server runs as user "
            f"{owner.uid} ({owner.source})",
            f"run install-udfs as root, or as user {owner.uid}",
        )
    yield from unreachable(owner, plan.interpreter, plan.bundle)


def unreachable(owner: Owner, interpreter: Path, bundle: Path) -> Iterator[Finding]:
    """What the server's user needs and cannot reach, though it is there."""
    if interpreter.exists() and not may(owner, interpreter, os.R_OK | os.X_OK):
        yield bad(
            f"{interpreter}: the server's user {owner.uid} may not execute it; calls would fail "
            "with 'Broken pipe'",
            "install the package into a folder that all may read, such as /opt/clickhouse-clip "
            f"(namei -l {interpreter.resolve()} shows where it is closed)",
        )
    for file in sorted(bundle.iterdir()) if bundle.is_dir() else ():
        if not may(owner, file, os.R_OK):
            yield bad(
                f"{file}: the server's user {owner.uid} may not read it",
                f"chmod -R go+rX {bundle}, and the folders above it, or move the bundle",
            )
            break


def _folder_obstacles(folder: Path, surroundings: Surroundings) -> Iterator[Finding]:
    nearest = _nearest(folder)
    mount = surroundings.mount_of(nearest)
    if mount is not None and "ro" in mount.options:
        yield bad(
            f"{folder}: lies on {mount.point}, which is mounted read-only",
            f"mount -o remount,rw {mount.point} for the time of the installation, or build the "
            "image with --root",
        )
    elif not nearest.is_dir():
        yield bad(f"{nearest}: is no folder", "move it away")
    elif not os.access(nearest, os.W_OK | os.X_OK):
        yield bad(
            f"{folder}: user {os.geteuid()} may not write there",
            "run install-udfs as root (sudo), or as the server's user",
        )


def _nearest(path: Path) -> Path:
    """`path`, or the folder above it that is there already."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
