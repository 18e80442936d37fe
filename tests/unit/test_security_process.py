"""The running service: who may talk to it, what it holds, what it leaves behind."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse_clip.udf import launch
from clickhouse_clip.udf.errors import ServiceError
from clickhouse_clip.udf.launch import connect, request_report
from clickhouse_clip.udf.settings import Settings
from tests import toy
from tests.processes import wait_for_end, wait_until
from tests.unit.udf.bad_pictures.parts import picture, saved

NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def settings(tmp_path: Path, bundle: Path) -> Settings:
    (tmp_path / "pictures").mkdir()
    return Settings(
        bundle=bundle,
        runtime_dir=tmp_path / "run",
        log_file=tmp_path / "log" / "encoder.log",
        image_roots=(tmp_path / "pictures",),
        precision="fp32",
        device="cpu",
    )


@pytest.fixture
def settings_file(tmp_path: Path, settings: Settings) -> Iterator[Path]:
    file = tmp_path / "settings.json"
    file.write_text(settings.to_json())
    yield file
    if settings.runtime_dir.is_dir() and not settings.runtime_dir.is_symlink():
        report = request_report(str(settings.runtime_dir), "stop")
        if report is not None:
            wait_for_end(int(str(report["pid"])))


def pid_of(settings: Settings) -> int:
    report = request_report(str(settings.runtime_dir), "status")
    assert report is not None
    return int(str(report["pid"]))


def log_of(settings: Settings) -> str:
    return settings.log_file.read_text()


def as_nobody(path: Path, greeting: bytes) -> str:
    """What another user gets from the socket: the name of the error, or what it answers."""
    reading, writing = os.pipe()
    # Through a descriptor, as the folders above may be closed to that user, too.
    directory = os.open(path.parent, os.O_PATH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork() beside threads
        child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(f"/proc/self/fd/{directory}/{path.name}")
                peer.sendall(greeting)
                peer.settimeout(60)
                os.write(writing, b"answer " + peer.recv(1000))
        except OSError as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.close(directory)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        return file.read().decode()


@as_root
def test_another_user_cannot_reach_the_socket(settings: Settings, settings_file: Path) -> None:
    with connect(str(settings_file), "encode_text", 0):
        path = settings.runtime_dir / launch.SOCKET_NAME
        assert as_nobody(path, b"") == "PermissionError"


@as_root
def test_another_user_who_reaches_it_is_refused(settings: Settings, settings_file: Path) -> None:
    """Even if somebody has opened the folder: the service asks the kernel who is there."""
    path = settings.runtime_dir / launch.SOCKET_NAME
    hello = b'{"role": "status", "version": "1"}'
    greeting = launch.frames.encode(launch.frames.HELLO, 0, hello)
    for _ in range(20):
        with connect(str(settings_file), "encode_text", 0):
            settings.runtime_dir.chmod(0o711)
            path.chmod(0o777)  # when the service sees that, it gives way: it may be gone already
            answer = as_nobody(path, greeting)
            settings.runtime_dir.chmod(0o700)
        if answer not in ("ConnectionRefusedError", "FileNotFoundError"):
            break
    assert answer in ("answer ", "ConnectionResetError", "BrokenPipeError")
    wait_until(lambda: f"of user {NOBODY} is not the server's" in log_of(settings), "no word")


@as_root
def test_a_runtime_folder_that_another_user_has_planted_is_refused(
    settings: Settings, settings_file: Path
) -> None:
    """For root, too, who may look into any: its service would give its pictures away."""
    settings.runtime_dir.mkdir(mode=0o700)
    os.chown(settings.runtime_dir, NOBODY, NOBODY)
    with pytest.raises(ServiceError, match="must belong to user 0 with mode 0700"):
        connect(str(settings_file), "encode_text", 0)
    assert list(settings.runtime_dir.iterdir()) == []


def test_a_folder_of_another_user_is_refused_whoever_asks(
    settings: Settings, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.runtime_dir.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)
    with pytest.raises(ServiceError, match=r"must belong to user \d+ with mode 0700"):
        connect(str(settings_file), "encode_text", 0)


@pytest.mark.parametrize("mode", [0o701, 0o710, 0o750, 0o770, 0o777])
def test_a_runtime_folder_that_is_open_to_others_is_refused(
    settings: Settings, settings_file: Path, mode: int
) -> None:
    settings.runtime_dir.mkdir()
    settings.runtime_dir.chmod(mode)
    with pytest.raises(ServiceError, match="with mode 0700"):
        connect(str(settings_file), "encode_text", 0)
    settings.runtime_dir.chmod(0o700)


def test_a_runtime_folder_that_is_a_link_is_refused(
    settings: Settings, settings_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    settings.runtime_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServiceError, match="cannot be used"):
        connect(str(settings_file), "encode_text", 0)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(
    settings: Settings, settings_file: Path, tmp_path: Path
) -> None:
    settings.runtime_dir.mkdir(mode=0o700)
    (settings.runtime_dir / launch.LOCK_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(ServiceError, match=r"encoder\.lock cannot be made"):
        connect(str(settings_file), "encode_text", 0)
    assert not (tmp_path / "victim").exists()


def test_the_service_has_dropped_what_it_does_not_need(
    settings: Settings, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with connect(str(settings_file), "encode_text", 0):
        process = Path(f"/proc/{pid_of(settings)}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        assert status["NoNewPrivs"].strip() == "1"
        assert status["Umask"].strip() == "0077"
        limits = (process / "limits").read_text()
        assert re.search(r"^Max core file size +[01] +[01] ", limits, re.MULTILINE)
        assert os.readlink(process / "cwd") == "/"
        names = {
            entry.partition(b"=")[0].decode()
            for entry in (process / "environ").read_bytes().split(b"\0")
        }
        assert not {"HTTPS_PROXY", "CLICKHOUSE_PASSWORD", "PYTHONPATH", "HOME"} & names
        # Its own session: no terminal can send it signals, none is left to be written to.
        assert os.getsid(int(process.name)) != os.getsid(0)
        for number in (0, 1, 2):
            assert os.readlink(process / "fd" / str(number)) == "/dev/null"


def block(*values: bytes) -> bytes:
    """What ClickHouse writes to a worker for these rows."""

    def number(value: int) -> bytes:
        encoded = b""
        while value >= 0x80:
            encoded += bytes((value & 0x7F | 0x80,))
            value >>= 7
        return encoded + bytes((value,))

    def text(value: bytes) -> bytes:
        return number(len(value)) + value

    head = b"%d\n\x01" % len(values) + number(len(values)) + text(b"x") + text(b"String")
    return head + b"".join(map(text, values))


def run_worker(
    settings_file: Path, function: str, data: bytes
) -> subprocess.CompletedProcess[bytes]:
    """A worker as ClickHouse starts it: one block, then the end."""
    script = "encode_text" if function == "encode_text" else "encode_image"
    code = (
        f"import sys; from clickhouse_clip.udf.{script} import main; "
        f"sys.exit(main({str(settings_file)!r}, [{function!r}]))"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code],
        input=data,
        capture_output=True,
        timeout=120,
        check=False,
    )


def use_everything(settings: Settings, settings_file: Path) -> None:
    """Texts, pictures and errors, through every function."""
    root = settings.image_roots[0]
    (root / "good.png").write_bytes(saved(picture(), "PNG"))
    (root / "bad.png").write_bytes(b"no picture")
    for function, rows in {
        "encode_text": [b"a dog", b"\xff\xfe", b"x" * 100_000],
        "encode_image": [b"good.png"],
        "encode_image_bytes": [saved(picture(), "TIFF"), saved(picture(), "JPEG")],
        "encode_image_or_empty": [b"good.png", b"bad.png", b"/etc/passwd", b"none"],
        "encode_image_bytes_or_empty": [saved(picture(), "GIF"), b"bad"],
    }.items():
        done = run_worker(settings_file, function, block(*rows))
        assert done.stderr == b"", function
        assert len(done.stdout) > 90
    done = run_worker(settings_file, "encode_image", block(b"bad.png"))
    assert b"no readable JPEG" in done.stderr


def test_nothing_is_written_but_log_and_runtime_folder(
    settings: Settings,
    settings_file: Path,
    tmp_path: Path,
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"):
        folder = tmp_path / "watched" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    before = {file: file.stat().st_mtime_ns for file in bundle.iterdir()}
    use_everything(settings, settings_file)
    assert not [file for file in (tmp_path / "watched").rglob("*") if file.is_file()]
    assert {file: file.stat().st_mtime_ns for file in bundle.iterdir()} == before
    assert {entry.name for entry in tmp_path.iterdir()} == {
        *("settings.json", "pictures", "watched", "run", "log")
    }
    assert {entry.name for entry in settings.runtime_dir.iterdir()} <= {
        *("encoder.sock", "encoder.lock")
    }
    assert {entry.name for entry in settings.log_file.parent.iterdir()} == {"encoder.log"}


def test_the_log_holds_no_texts_and_no_pictures(settings: Settings, settings_file: Path) -> None:
    secret = b"a secret that somebody searches for"
    for function, rows in {
        "encode_text": [secret, b"\xff" + secret, secret * 100],
        "encode_image_bytes": [b"\x89PNG" + secret],
        "encode_image_bytes_or_empty": [secret, b"\xff\xd8\xff" + secret, b"GIF89a" + secret],
    }.items():
        run_worker(settings_file, function, block(*rows))
    # A block that breaks off in the middle of a row, and a column that is none.
    run_worker(settings_file, "encode_text", block(secret)[:-3])
    run_worker(settings_file, "encode_text", block(secret).replace(b"String", b"Strung"))
    text = log_of(settings)
    assert "encode_image_bytes_or_empty: row 1 of 3" in text
    for word in secret.decode().split():
        assert len(word) < 4 or word not in text


def test_paths_cannot_forge_lines_of_the_log_or_of_messages(
    settings: Settings, settings_file: Path
) -> None:
    forged = "x\n2026-01-01 00:00:00,000 INFO 1 forged\r\x1b[2Jy\u202e\u2028z\0".encode()
    for rows in ([forged], [b"\xff\n" + forged], [forged * 50]):
        run_worker(settings_file, "encode_image_or_empty", block(*rows))
        message = run_worker(settings_file, "encode_image", block(*rows)).stderr.decode()
        assert message.count("\n") == 1
        assert message.rstrip("\n").isprintable()
    lines = log_of(settings).split("\n")
    assert not [line for line in lines if line.startswith("2026-01-01") or not line.isprintable()]
    assert len([line for line in lines if "forged" in line]) >= 6


def test_a_worker_takes_no_other_orders_than_functions(settings_file: Path) -> None:
    """`executable()` lets whoever may use it start a launcher with arguments of their own."""
    for function in ("encode_nothing", "../encode_text", "--help", "__class__"):
        done = run_worker(settings_file, function, block(b"x"))
        assert b"do not know each other's" in done.stderr
