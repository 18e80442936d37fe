from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from clickhouse_clip.udf import cpus
from clickhouse_clip.udf.cpus import cgroup_quota, usable_cpus


def control_groups(tmp_path: Path, membership: str, **files: str) -> tuple[Path, Path]:
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "self").write_text(membership)
    return root, tmp_path / "self"


def test_version_2_is_the_tightest_of_the_group_and_its_parents(tmp_path: Path) -> None:
    files = {
        "cpu.max": "max 100000\n",
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "400000 100000\n",
    }
    assert cgroup_quota(*control_groups(tmp_path, "0::/a/b\n", **files)) == 1.5


def test_version_1_reads_the_cpu_controller(tmp_path: Path) -> None:
    membership = "5:memory:/x\n4:cpu,cpuacct:/docker/1\n"
    files = {
        "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n",
        "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    assert cgroup_quota(*control_groups(tmp_path, membership, **files)) == 0.5


def test_in_a_container_the_mount_is_the_group_itself(tmp_path: Path) -> None:
    groups = control_groups(tmp_path, "0::/docker/1234\n", **{"cpu.max": "200000 100000\n"})
    assert cgroup_quota(*groups) == 2.0


@pytest.mark.parametrize("content", ["max 100000\n", "", "nonsense\n"])
def test_no_limit_is_infinity(tmp_path: Path, content: str) -> None:
    groups = control_groups(tmp_path, "0::/\n", **{"cpu.max": content})
    assert cgroup_quota(*groups) == math.inf


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "none", tmp_path / "none") == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 8), (1.5, 2), (0.1, 1), (64.0, 8)])
def test_the_smaller_of_affinity_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, quota: float, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "cgroup_quota", lambda *_: quota)
    assert usable_cpus() == expected
