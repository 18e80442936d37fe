"""The service as a process, without a model: starting, greeting, giving way, leaving."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clickhouse_clip.udf import frames, greeting, launch
from clickhouse_clip.udf import start as starting
from clickhouse_clip.udf.control import main as clip_encoder
from clickhouse_clip.udf.errors import ProtocolError, ServiceError
from clickhouse_clip.udf.greeting import receive_hello
from clickhouse_clip.udf.launch import connect, request_report
from clickhouse_clip.udf.native import array_block_header
from clickhouse_clip.udf.service_log import open_log
from clickhouse_clip.udf.settings import Settings
from tests import toy
from tests.processes import is_alive, processes_with, wait_for_end, wait_until
from tests.unit.udf.test_native import strings


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture
def settings(tmp_path: Path, bundle: Path) -> Settings:
    return Settings(
        bundle=bundle,
        runtime_dir=tmp_path / "run",
        log_file=tmp_path / "log" / "encoder.log",
        image_roots=(tmp_path,),
        precision="fp32",
    )


@pytest.fixture
def settings_file(tmp_path: Path, settings: Settings) -> Iterator[Path]:
    file = tmp_path / "settings.json"
    file.write_text(settings.to_json())
    yield file
    stop(settings)


def status(settings: Settings) -> dict[str, object] | None:
    return request_report(str(settings.runtime_dir), "status")


def pid_of(settings: Settings) -> int:
    report = status(settings)
    assert report is not None
    return int(str(report["pid"]))


def stop(settings: Settings) -> None:
    report = request_report(str(settings.runtime_dir), "stop")
    if report is not None:
        wait_for_end(int(str(report["pid"])))


def test_the_first_worker_starts_it_and_the_next_finds_it(
    settings: Settings, settings_file: Path
) -> None:
    with connect(str(settings_file), "encode_text", 0):
        first = pid_of(settings)
        with connect(str(settings_file), "encode_image", 0):
            report = status(settings)
    assert report is not None
    assert report["pid"] == first
    assert report["workers"] == 2
    assert report["model"] == "toy"


def test_folder_socket_and_log_are_the_owners_alone(
    settings: Settings, settings_file: Path
) -> None:
    connect(str(settings_file), "encode_text", 0).close()
    assert settings.runtime_dir.stat().st_mode & 0o777 == 0o700
    assert (settings.runtime_dir / launch.SOCKET_NAME).stat().st_mode & 0o077 == 0
    assert settings.log_file.stat().st_mode & 0o077 == 0


def test_it_holds_none_of_the_descriptors_of_who_started_it(
    settings: Settings, settings_file: Path, tmp_path: Path
) -> None:
    with (tmp_path / "inherited").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with connect(str(settings_file), "encode_text", 0):
            folder = Path(f"/proc/{pid_of(settings)}/fd")
            held = {os.readlink(entry) for entry in folder.iterdir()}
            assert not any("inherited" in name for name in held)
            assert os.readlink(folder.parent / "cwd") == "/"


def test_it_leaves_after_the_grace_period(settings: Settings, settings_file: Path) -> None:
    settings_file.write_text(replace(settings, grace_seconds=0.2).to_json())
    with connect(str(settings_file), "encode_text", 0):
        pid = pid_of(settings)
        time.sleep(1.5)
        assert is_alive(pid)
    wait_for_end(pid)
    assert status(settings) is None


def test_changed_settings_bring_a_new_service(settings: Settings, settings_file: Path) -> None:
    with connect(str(settings_file), "encode_text", 0) as old:
        first = pid_of(settings)
        settings_file.write_text(replace(settings, threads=1).to_json())
        with connect(str(settings_file), "encode_text", 0):
            report = status(settings)
            assert report is not None
            assert report["pid"] != first
            assert report["threads"] == 1
            wait_for_end(first)
            old.setblocking(True)
            assert old.recv(99) == frames.encode(frames.RETIRED)


def install_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """From now on workers are of `version`, and the service that they start is too."""
    code = (
        f"import clickhouse_clip.udf as package; package.__version__ = {version!r}; "
        "import sys; from clickhouse_clip.udf.service import main; sys.exit(main(sys.argv[1:]))"
    )
    monkeypatch.setattr(launch, "__version__", version)
    monkeypatch.setattr(starting, "_SERVICE", ("-IBc", code))


def test_a_newer_worker_replaces_an_older_service(
    settings: Settings, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(str(settings_file), "encode_text", 0):
        first = pid_of(settings)
        install_version(monkeypatch, "99.0.0")
        with connect(str(settings_file), "encode_text", 0):
            report = status(settings)
    assert report is not None
    assert report["version"] == "99.0.0"
    wait_for_end(first)


def test_an_older_worker_is_served(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(str(settings_file), "encode_text", 0):
        monkeypatch.setattr(launch, "__version__", "0.0.1")
        connect(str(settings_file), "encode_text", 0).close()


def test_a_worker_of_another_protocol_is_told_so(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(str(settings_file), "encode_text", 0):
        monkeypatch.setattr(frames, "PROTOCOL", 99)
        with pytest.raises(ServiceError, match="SYSTEM RELOAD FUNCTIONS"):
            connect(str(settings_file), "encode_text", 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bundle": Path("/nowhere")}, "/nowhere: no model bundle"),
        ({"log_file": Path("/proc/none/encoder.log")}, "log .* cannot be written"),
        ({"runtime_dir": Path("/proc/none")}, "runtime folder"),
    ],
)
def test_why_it_cannot_start(
    settings: Settings, tmp_path: Path, change: dict[str, Path], message: str
) -> None:
    file = tmp_path / "settings.json"
    file.write_text(replace(settings, **change).to_json())  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match=message):
        connect(str(file), "encode_text", 0)


def test_settings_that_it_refuses(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({**json.loads(settings.to_json()), "precision": "fp8"}))
    with pytest.raises(ServiceError, match=r"settings\.json: precision: must be one of"):
        connect(str(file), "encode_text", 0)


def test_a_runtime_folder_that_others_may_enter_is_refused(
    settings: Settings, settings_file: Path
) -> None:
    settings.runtime_dir.mkdir()
    settings.runtime_dir.chmod(0o750)
    with pytest.raises(ServiceError, match="mode 0700"):
        connect(str(settings_file), "encode_text", 0)
    settings.runtime_dir.chmod(0o700)


def test_a_runtime_path_of_any_length(settings: Settings, tmp_path: Path) -> None:
    """A Unix address holds 107 bytes."""
    long = replace(settings, runtime_dir=tmp_path / ("x" * 200))
    file = tmp_path / "long.json"
    file.write_text(long.to_json())
    connect(str(file), "encode_text", 0).close()
    stop(long)


HELLO = {
    "role": "worker", "protocol": frames.PROTOCOL, "version": "0", "settings": "", "skip": 0,
    "function": "encode_text",
}  # fmt: skip


def hello(**changes: object) -> bytes:
    return frames.encode(frames.HELLO, 0, json.dumps({**HELLO, **changes}).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 100,
        frames.encode(frames.ROWS),
        frames.HEADER.pack(frames.HELLO, 0, 1 << 40),
        frames.HEADER.pack(frames.HELLO, 0, 1 << 20) + b" " * 70_000,
        *(
            frames.encode(frames.HELLO, 0, payload)
            for payload in (b"{", b"[]", b"null", b"{}", b'{"role": []}', b"[" * 60_000, b"\xff")
        ),
        hello(role="nobody"),
        hello(version=1),
        hello(settings=None),
        hello(function=["encode_text"]),
        hello(skip=-1),
        hello(skip="0"),
        hello(skip=True),
    ],
)
def test_who_says_no_hello_is_refused(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        threading.Thread(target=theirs.sendall, args=(data,), daemon=True).start()
        with pytest.raises((ServiceError, ProtocolError)):
            receive_hello(ours)


def test_hostile_peers_do_not_hurt_the_service(settings: Settings, settings_file: Path) -> None:
    with connect(str(settings_file), "encode_text", 0):
        pid = pid_of(settings)
        for data in (b"x" * 100, frames.encode(frames.HELLO, 0, b"{"), b"", hello(skip=-1)):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(settings.runtime_dir / launch.SOCKET_NAME))
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""
        assert pid_of(settings) == pid


@pytest.mark.parametrize(
    "data",
    [
        b"no block, and no chunk header either",
        b"2\n" + b"\xff" * 20,
        b"99999999999999999999\n\x01",
        b"1\n\x01\x01\x04text\x0dArray(String)",
        b"1\n\x01\x01\x04text\x0eFixedString(0)",
        b"1\n\x01\x01\x04text\x06UInt64" + bytes(8),
        b"1\n\x01\x01\x04text\x06String\x01x and more than the block has",
        b"1\n\x01\x01\x04text\x06String" + b"\xff" * 9 + b"\x01",  # a text of 2**64 bytes
    ],
)
def test_a_worker_that_sends_no_block_gets_an_error(settings_file: Path, data: bytes) -> None:
    with connect(str(settings_file), "encode_text", 0) as connection:
        connection.setblocking(True)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    found = frames.FrameReader((frames.ERROR,)).feed(received)
    # A text that never comes is waited for, until the worker has gone.
    assert [kind for kind, _, _ in found] == ([] if data.endswith(b"\x01") else [frames.ERROR])


def test_a_service_that_does_not_answer_is_replaced(
    settings: Settings, settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_GREETING_SECONDS", 1.0)
    with connect(str(settings_file), "encode_text", 0):
        first = pid_of(settings)
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(ServiceError, match="did not answer"):
            status(settings)
        with connect(str(settings_file), "encode_text", 0):
            assert pid_of(settings) != first
    wait_for_end(first)
    assert f"killed process {first}" in settings.log_file.read_text()


def test_clip_encoder_stop_ends_a_service_that_does_not_answer(
    settings: Settings,
    settings_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launch, "_GREETING_SECONDS", 1.0)
    with connect(str(settings_file), "encode_text", 0):
        pid = pid_of(settings)
        os.kill(pid, signal.SIGSTOP)
        assert clip_encoder(["stop", "--settings", str(settings_file)]) == 0
    assert f"{pid} did not answer and was killed" in capsys.readouterr().out
    wait_for_end(pid)


def test_a_service_that_hangs_while_it_starts_is_killed(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked or not."""
    monkeypatch.setattr(starting, "_START_SECONDS", 1.0)
    monkeypatch.setattr(
        starting, "_SERVICE", ("-IBc", "import os, time; os.fork(); time.sleep(3600)")
    )
    with pytest.raises(ServiceError, match="did not listen within 1 s"):
        connect(str(settings_file), "encode_text", 0)
    wait_until(lambda: not processes_with(str(settings_file), "3600"), "it is still there")


def test_a_hundred_workers_at_once_start_one_service(
    settings: Settings, settings_file: Path
) -> None:
    code = (
        "import sys; from clickhouse_clip.udf.encode_text import main; "
        "sys.exit(main(sys.argv[1], sys.argv[2:]))"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-Ic", code, str(settings_file), "encode_text"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(100)
    ]
    for number, process in enumerate(workers):
        assert process.stdin is not None
        process.stdin.write(strings(b"w%d" % number))
        process.stdin.close()
    for number, process in enumerate(workers):
        assert process.stdout is not None
        assert process.stderr is not None
        with process.stdout, process.stderr:
            answer, message = process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 0
        assert message == b""
        assert answer.startswith(array_block_header(1))
        vector = np.frombuffer(answer[-4 * toy.DIM :], "<f4")
        np.testing.assert_allclose(vector, toy.text_vector(b"w%d" % number), atol=2e-6)
    assert settings.log_file.read_text().count("listens") == 1


def test_another_users_peer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hello = {"role": "status", "version": "1.0"}
        theirs.sendall(frames.encode(frames.HELLO, 0, json.dumps(hello).encode()))
        monkeypatch.setattr(greeting, "peer_of", lambda _: (1, os.geteuid() + 4711))
        with pytest.raises(ServiceError, match="not the server's"):
            receive_hello(ours)
        monkeypatch.undo()
        assert receive_hello(ours).role == "status"


def test_the_log_is_bounded(settings: Settings, root_logger: logging.Logger) -> None:
    open_log(replace(settings, log_max_bytes=8192))
    for number in range(1000):
        root_logger.info("line %d of some length, so that the file is soon full", number)
        total = sum(file.stat().st_size for file in settings.log_file.parent.iterdir())
        assert total <= 8192
    assert "line 999" in settings.log_file.read_text()


def test_clip_encoder(
    settings: Settings, settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = ["--settings", str(settings_file)]
    assert clip_encoder(["status", *option]) == 3
    assert "no encoder service runs" in capsys.readouterr().err
    assert not settings.runtime_dir.exists()
    with connect(str(settings_file), "encode_text", 0):
        assert clip_encoder(["status", *option]) == 0
        text = capsys.readouterr().out
        for word in ("toy", "precision", "uptime", "rows", "cache hits", "queue", "memory"):
            assert word in text
        assert clip_encoder(["status", "--json", *option]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["pid"] == pid_of(settings)
        assert clip_encoder(["stop", *option]) == 0
        wait_for_end(report["pid"])
    assert clip_encoder(["status", "--settings", "/none.json"]) == 1
    assert "install-udfs" in capsys.readouterr().err
