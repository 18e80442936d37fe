from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from clickhouse_clip.installer.discover import standalone
from clickhouse_clip.installer.owner import Owner, find_owner, may
from clickhouse_clip.installer.plan import Plan
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.surroundings import (
    Mount,
    Surroundings,
    look_around,
    obstacles,
    parse_mounts,
)
from clickhouse_clip.udf.errors import InstallError

TABLE = r"""/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw,nosuid 0 0
/dev/sdb1 /var/lib/click\040house ext4 rw,noexec,nosuid 0 0
/dev/sdc1 /mnt xfs rw 0 0
/dev/sdd1 /mnt xfs ro 0 0
"""


def mounted(point: Path, *options: str) -> Surroundings:
    return Surroundings(
        (Mount(Path("/"), "ext4", frozenset(["rw"])), Mount(point, "xfs", frozenset(options)))
    )


def findings(plan: Plan, surroundings: Surroundings, root: Path | None = None) -> list[str]:
    found = obstacles(plan, surroundings, Root(root))
    return [f"{finding.level}: {finding.message}; {finding.remedy}" for finding in found]


def test_mounts_are_parsed() -> None:
    mounts = parse_mounts(TABLE)
    assert [str(mount.point) for mount in mounts][:3] == ["/", "/proc", "/var/lib/click house"]
    surroundings = Surroundings(mounts)
    held = surroundings.mount_of(Path("/var/lib/click house/user_scripts"))
    assert held is not None
    assert "noexec" in held.options
    # What is mounted over another mount is what counts.
    held = surroundings.mount_of(Path("/mnt/x"))
    assert held is not None
    assert "ro" in held.options


def test_this_machine_has_a_root() -> None:
    assert look_around().mount_of(Path("/")) is not None


def test_nothing_in_the_way(plan: Plan, tmp_path: Path) -> None:
    assert findings(plan, mounted(tmp_path, "rw")) == []


def test_scripts_on_noexec(plan: Plan) -> None:
    scripts = plan.server.user_scripts
    scripts.mkdir(parents=True)
    (message,) = findings(plan, mounted(scripts, "rw", "noexec"))
    assert message.startswith("error: ")
    assert "mounted noexec, and ClickHouse executes scripts there" in message
    assert "set user_scripts_path" in message
    # An image's tree may be built on such a mount.
    image = plan.server.data_dir.parent
    assert findings(plan, mounted(scripts, "rw", "noexec"), image) == []


def test_read_only(plan: Plan, tmp_path: Path) -> None:
    messages = findings(plan, mounted(tmp_path, "ro"))
    assert "which is mounted read-only" in messages[0]
    assert f"mount -o remount,rw {tmp_path}" in messages[0]


def test_selinux(plan: Plan) -> None:
    (message,) = findings(plan, Surroundings((), selinux_enforcing=True))
    assert message.startswith("warning: SELinux is enforcing")
    assert f"restorecon -R {plan.private} {plan.server.user_scripts}" in message


def test_a_folder_that_is_closed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    messages = findings(plan, Surroundings())
    assert "may not write there; run install-udfs as root (sudo)" in messages[0]


def test_a_file_where_a_folder_should_be(plan: Plan) -> None:
    plan.server.config_dir.write_text("")
    assert "is no folder; move it away" in findings(plan, Surroundings())[0]


def test_run_as_another_user_than_the_server(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(os, "access", lambda *_: True)
    owned = replace(plan, owner=Owner(101, 102, "owner of /data"))
    message = findings(owned, Surroundings())[0]
    assert "will belong to user 4321, and the server runs as user 101 (owner of /data)" in message


def test_what_the_servers_user_cannot_reach(plan: Plan, bundle: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    python = closed / "python3"
    python.touch(0o755)
    owned = replace(plan, owner=Owner(101, 102, "x"), interpreter=python)
    messages = findings(owned, Surroundings())
    assert any("may not execute it; calls would fail with 'Broken pipe'" in m for m in messages)
    assert any(f"chmod -R go+rX {bundle}" in m for m in messages)


def test_may(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o640)
    file.chmod(0o640)
    me = file.stat()
    for uid, gid, expected in (
        (me.st_uid, 9, True),
        (0, 0, True),
        (4321, 9, False),
    ):
        assert may(Owner(uid, gid, ""), file, os.R_OK) is expected
    assert not may(Owner(0, 0, ""), tmp_path / "nothing", os.R_OK)
    assert not may(Owner(4321, 9, ""), tmp_path / "nothing", os.R_OK)
    assert may(Owner(4321, 9, ""), Path("/bin/sh"), os.R_OK | os.X_OK)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nclickhouse:x:101:102::/nonexistent:/bin/false\n"
    )
    (tmp_path / "etc" / "group").write_text("root:x:0:\nclickhouse:x:102:\ndata:x:300:\n")
    return tmp_path


def unit(
    image: Path, content: str, name: str = "usr/lib/systemd/system/clickhouse-server.service"
) -> None:
    (image / name).parent.mkdir(parents=True, exist_ok=True)
    (image / name).write_text(content)


def owner_in(image: Path) -> tuple[int, int] | None:
    found = find_owner(Path("/var/lib/clickhouse"), Root(image))
    return None if found is None else (found.uid, found.gid)


UNIT = """[Unit]
After=a
After=b
[Service]
Type=notify
User=clickhouse
ExecStart=/usr/bin/x %% \\
  --a
"""


def test_owner_by_unit_file(image: Path) -> None:
    assert owner_in(image) is None
    unit(image, UNIT)
    assert owner_in(image) == (101, 102)
    unit(image, UNIT + "Group=data\n", "etc/systemd/system/clickhouse-server.service")
    assert owner_in(image) == (101, 300)
    drop_in = "etc/systemd/system/clickhouse-server.service.d/user.conf"
    unit(image, "[Service]\nUser=0\n", drop_in)
    assert owner_in(image) == (0, 300)


def test_the_data_folders_owner_is_the_truth(image: Path) -> None:
    unit(image, UNIT)
    data = image / "var" / "lib" / "clickhouse"
    data.mkdir(parents=True)
    status = data.stat()
    assert owner_in(image) == (status.st_uid, status.st_gid)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[Service]\nUser=nobody-here\n", "there is no such user"),
        ("[Service]\nUser=clickhouse\nGroup=nothing\n", "there is no such group"),
    ],
)
def test_a_unit_with_a_user_that_is_not_there(image: Path, content: str, message: str) -> None:
    unit(image, content)
    with pytest.raises(InstallError, match=message):
        owner_in(image)


def test_root_maps_both_ways(tmp_path: Path) -> None:
    root = Root(tmp_path)
    assert root.at(Path("/etc/x")) == tmp_path / "etc" / "x"
    assert root.seen(tmp_path / "etc" / "x") == Path("/etc/x")
    assert root.seen(Path("/etc/x")) == Path("/etc/x")
    assert Root().at(Path("/etc/x")) == Path("/etc/x")
    assert standalone(Path("/a"), Path("/b")).user_files == Path("/b/user_files")
