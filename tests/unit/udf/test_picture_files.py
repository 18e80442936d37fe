from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.udf import picture_files
from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.picture_files import read_picture

DATA = b"a picture's bytes"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "user_files"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(DATA)
    (folder / "sub" / "b.jpg").write_bytes(DATA)
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "user_files_of_another"
    folder.mkdir()
    (folder / "secret").write_bytes(b"secret")
    return folder


def read(path: bytes | str | Path, *roots: Path, max_bytes: int = 1000) -> bytes:
    return read_picture(os.fsencode(path), roots, max_bytes=max_bytes)


def reason(path: bytes | str | Path, *roots: Path, max_bytes: int = 1000) -> str:
    with pytest.raises(PictureError) as caught:
        read(path, *roots, max_bytes=max_bytes)
    return str(caught.value)


@pytest.mark.parametrize("path", ["a.jpg", "./a.jpg", "sub/../a.jpg", "sub//b.jpg"])
def test_relative_paths_start_at_the_first_root(root: Path, outside: Path, path: str) -> None:
    assert read(path, root, outside) == DATA


def test_absolute_paths_may_lie_in_any_root(root: Path, outside: Path) -> None:
    assert read(root / "a.jpg", root, outside) == DATA
    assert read(outside / "secret", root, outside) == b"secret"
    assert read(f"//{root}/a.jpg", root) == DATA


def test_names_that_are_no_unicode_are_read(root: Path) -> None:
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(DATA)
    assert read(b"\xff.jpg", root) == DATA


def test_links_inside_of_the_roots_are_followed(root: Path, outside: Path) -> None:
    (root / "link.jpg").symlink_to("sub/b.jpg")
    (root / "folder").symlink_to(outside)
    assert read("link.jpg", root) == DATA
    assert read("folder/secret", root, outside) == b"secret"


def test_a_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert read("a.jpg", tmp_path / "link") == DATA
    assert read(root / "a.jpg", tmp_path / "link") == DATA
    assert read(tmp_path / "link" / "a.jpg", tmp_path / "link") == DATA


def test_a_path_that_is_outside_by_its_name_is_not_even_looked_at(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is mounted on demand or hangs, a link back inside: all the same."""
    (outside / "back").symlink_to(root)
    looked: list[str] = []
    real_lstat = os.lstat

    def lstat(path: object, **options: Any) -> os.stat_result:
        looked.append(os.fsdecode(path))  # type: ignore[arg-type]
        return real_lstat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "lstat", lstat)
    for path in (outside / "back" / "a.jpg", outside / "none", "/proc/self/environ", "/net/x"):
        looked.clear()
        assert "outside the folders" in reason(path, root)
        assert all(root.is_relative_to(name) for name in looked), looked


def test_everything_may_be_a_root(root: Path) -> None:
    assert read(root / "a.jpg", Path("/")) == DATA


def test_outside_is_the_same_error_whether_there_is_a_file_or_not(
    root: Path, outside: Path
) -> None:
    (root / "link").symlink_to(outside / "secret")
    (root / "dangling").symlink_to(outside / "nothing")
    (root / "loop").symlink_to(outside / "loop")
    (outside / "loop").symlink_to(outside / "loop")
    there = reason(outside / "secret", root)
    assert "--image-root" in there
    assert "image_roots" in there
    name = outside.name
    for path in (
        outside / "nothing",
        outside / "secret" / "below",
        outside,
        f"../{name}/secret",
        f"../{name}/nothing",
        f"sub/../../{name}/secret",
        "link",
        "dangling",
        "loop",
        "..",
        ".",
        "/",
        "/etc/passwd",
        "/etc/no such file",
        "/" + "x" * 5000,
        "/root/.ssh/id_rsa",
        "/proc/self/environ",
    ):
        assert reason(path, root) == there, path


def test_dots_after_a_folder_outside_do_not_tell_whether_it_is_there(
    root: Path, outside: Path, tmp_path: Path
) -> None:
    (outside / "link").symlink_to(tmp_path)
    for name in ("link", "secret", "nothing"):
        assert read(outside / name / ".." / ".." / root.name / "a.jpg", root) == DATA


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"", "empty"),
        (b"a\0.jpg", "NUL"),
        (b"none.jpg", "no such file"),
        (b"a.jpg/b", "no such file"),
        (b"sub", "it is a folder"),
        (b"x" * 300, "too long"),
        (b"sub/" * 2000, "too long"),
    ],
)
def test_what_is_no_readable_file_says_why(root: Path, path: bytes, expected: str) -> None:
    if path.startswith(b"sub/"):
        # normalised, this is long only if its parts differ
        path = b"/".join(b"%d" % number for number in range(2000))
    assert expected in reason(path, root)


def test_links_in_a_circle_say_so(root: Path) -> None:
    (root / "circle").symlink_to("circle")
    assert "symbolic link" in reason("circle", root)
    assert "symbolic link" in reason("circle/a.jpg", root)


def test_pipes_and_sockets_are_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert "a pipe" in reason("pipe", root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
        assert "a socket" in reason("socket", root)


def test_devices_are_refused(root: Path) -> None:
    assert "a device" in reason("/dev/zero", root, Path("/dev"))


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(root: Path) -> None:
    (root / "a.jpg").chmod(0)
    assert "may not read" in reason("a.jpg", root)


def test_a_file_may_be_as_large_as_the_limit_and_no_larger(root: Path) -> None:
    assert read("a.jpg", root, max_bytes=len(DATA)) == DATA
    assert "larger than 16 bytes (setting max_bytes)" in reason("a.jpg", root, max_bytes=16)
    with (root / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than" in reason("huge", root)


def test_without_roots_nothing_is_read(root: Path) -> None:
    assert "no folder is allowed" in reason(root / "a.jpg")


def swapping(monkeypatch: pytest.MonkeyPatch, swap: Callable[[], None]) -> None:
    """Let `swap` run between the check of the path and the opening of the file."""
    check = picture_files._inside
    calls: list[bytes] = []

    def inside(path: bytes, allowed: list[bytes]) -> bool:
        result = check(path, allowed)
        calls.append(path)
        if len(calls) == 2:  # the name has been checked, and where its links end
            swap()
        return result

    monkeypatch.setattr(picture_files, "_inside", inside)


def test_a_folder_swapped_for_a_link_after_the_check_is_outside(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "sub" / "secret").write_bytes(DATA)

    def swap() -> None:
        (root / "sub").rename(root / "moved")
        (root / "sub").symlink_to(outside)

    swapping(monkeypatch, swap)
    assert "outside the folders" in reason("sub/secret", root)


def test_a_file_swapped_for_a_link_after_the_check_is_not_followed(
    root: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap() -> None:
        (root / "a.jpg").unlink()
        (root / "a.jpg").symlink_to(outside / "secret")

    swapping(monkeypatch, swap)
    assert "symbolic link" in reason("a.jpg", root)


def test_a_file_that_vanishes_after_the_check_is_missing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swapping(monkeypatch, (root / "a.jpg").unlink)
    assert reason("a.jpg", root) == "no such file"


def test_a_file_swapped_for_a_pipe_is_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap() -> None:
        (root / "a.jpg").unlink()
        os.mkfifo(root / "a.jpg")

    swapping(monkeypatch, swap)
    assert "a pipe" in reason("a.jpg", root)


class Changing:
    """Lets `change` run once a file is open and its first bytes have been read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[int], None]) -> None:
        self._open = os.fdopen
        self._change = change
        monkeypatch.setattr(os, "fdopen", self.fdopen)

    def fdopen(self, descriptor: int, mode: str) -> Any:
        self._change(descriptor)
        return self._open(descriptor, mode)


def test_a_file_that_grows_while_it_is_read_is_still_limited(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grow(_: int) -> None:
        with (root / "a.jpg").open("ab") as file:
            file.write(bytes(5000))

    Changing(monkeypatch, grow)
    assert "larger than 1000 bytes" in reason("a.jpg", root)


def test_a_file_that_is_removed_while_it_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Changing(monkeypatch, lambda _: (root / "a.jpg").unlink())
    assert read("a.jpg", root) == DATA


def test_a_file_that_shrinks_while_it_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Changing(monkeypatch, lambda _: os.truncate(root / "sub" / "b.jpg", 3))
    # A part of a picture is refused when it is decoded.
    assert read("sub/b.jpg", root) == DATA[:3]


def test_a_link_that_flips_while_it_is_read_never_leads_outside(root: Path, outside: Path) -> None:
    """The race itself, with a thread that swaps a folder and a link as fast as it can."""
    (root / "sub" / "secret").write_bytes(DATA)
    (root / "link").symlink_to(outside)
    stop = threading.Event()

    def flip() -> None:
        while not stop.is_set():
            (root / "sub").rename(root / "aside")
            (root / "link").rename(root / "sub")
            (root / "sub").rename(root / "link")
            (root / "aside").rename(root / "sub")

    thread = threading.Thread(target=flip)
    thread.start()
    try:
        found = set()
        for _ in range(3000):
            try:
                found.add(read("sub/secret", root))
            except PictureError as error:
                found.add(str(error).encode()[:20])
    finally:
        stop.set()
        thread.join(60)
    assert b"secret" not in found
    assert DATA in found


def test_a_hard_link_is_the_file_itself(root: Path, outside: Path) -> None:
    """Nothing tells it from any other file: who may make links in a root decides what is in it."""
    os.link(outside / "secret", root / "hard")
    assert read("hard", root) == b"secret"


@pytest.mark.parametrize(
    "path",
    ["/proc/self/root{root}/a.jpg", "/proc/self/cwd/a.jpg", "/dev/fd/0", "/proc/thread-self/mem"],
)
def test_magic_links_lead_nowhere(root: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert "outside the folders" in reason(path.format(root=root), root)
    (root / "magic").symlink_to(path.format(root="/etc"))
    assert "outside the folders" in reason("magic/passwd", root)


def test_no_descriptor_is_left_open(root: Path, outside: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("a.jpg", "none", "sub", outside / "secret"):
        try:
            read(path, root)
        except PictureError:
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before
