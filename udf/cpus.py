"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_SELF = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    """Processors that this process may use: at least 1.

    The smaller of its affinity mask and of its control groups' quota, rounded up: a container
    limited to 1.5 processors gets 2 threads.
    """
    quota = cgroup_quota(CGROUP_ROOT, CGROUP_SELF)
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota == math.inf else max(1, min(allowed, math.ceil(quota)))


def cgroup_quota(root: Path, membership: Path) -> float:
    """The tightest CPU quota of this process's control groups, in processors; else infinity.

    root: where the control groups are mounted. membership: this process's `/proc/self/cgroup`.
    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`).
    """
    quota = math.inf
    for mount, folder in _groups(root, membership):
        # A limit set on any parent holds too. In a container the path may be the host's, with
        # nothing there: then only the mount, which is the container's own group, answers.
        for group in (folder, *folder.parents):
            quota = min(quota, _quota(group))
            if group == mount:
                break
    return quota


def _groups(root: Path, membership: Path) -> Iterator[tuple[Path, Path]]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "0::/path" is version 2; "4:cpu,cpuacct:/path" is version 1 (see cgroups(7)).
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield root, root / path.lstrip("/")
        elif "cpu" in controllers.split(","):
            for mount in (root / controllers, root / "cpu"):
                yield mount, mount / path.lstrip("/")


def _quota(group: Path) -> float:
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return math.inf
    # "max" (version 2) and -1 (version 1) stand for no limit.
    return int(limit) / int(period) if limit.isdigit() else math.inf
