"""The installer beside a server that answers: verified over HTTP, or tried beforehand.

These need the newest engine: the installer's own environment has it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clickhouse_clip.installer.cli import main
from tests.embedded.conftest import PYTHON
from tests.server_trees import TREES, drop_in, state

pytestmark = pytest.mark.skipif(
    Path(sys.executable) != PYTHON, reason="runs on the newest engine alone"
)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    TREES["startup scripts of its own"].write(tmp_path / "etc", tmp_path / "data")
    return tmp_path / "etc"


def run(capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*options, "--json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def good_functions(answer: dict[str, Any]) -> list[str]:
    found = (finding["message"] for finding in answer["findings"] if finding["level"] == "ok")
    return [message for message in found if "16 dimensions, norm 1.000" in message]


@contextmanager
def running(etc: Path) -> Iterator[str]:
    """A server that runs on `etc`; gives its port."""
    server = Path(__file__).parents[2] / "docker" / "engine" / "server.py"
    process = subprocess.Popen(
        [sys.executable, server, "--config-file", etc / "config.xml", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


@pytest.fixture
def port(etc: Path, bundle: Path) -> Iterator[str]:
    """A server that runs on `etc`, with the functions."""
    assert main(["--bundle", str(bundle), "--config-dir", str(etc), "--quiet"]) == 0
    with running(etc) as port:
        yield port


def test_verify_check_and_uninstall(
    port: str, etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ("--config-dir", str(etc), "--host", "127.0.0.1", "--port", port)
    assert len(good_functions(run(capsys, *server, "--image-root", "/tmp"))) == 5
    assert len(good_functions(run(capsys, *server, "--check"))) == 5
    user_files = etc.parent / "data" / "user_files"
    assert list(user_files.iterdir()) == []
    renamed = run(capsys, *server, "--prefix", "x_")
    assert len(good_functions(renamed)) == 5
    assert "x_encode_text" in good_functions(renamed)[0]
    assert run(capsys, *server, "--uninstall")["status"] == "uninstalled"


def test_a_server_that_does_not_load_the_functions(
    etc: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The stand-in reads its configuration when it starts: it never sees the drop-in.
    with running(etc) as port:
        server = ("--config-dir", str(etc), "--port", port, "--bundle", str(bundle))
        answer = run(capsys, *server, code=1)
    assert answer["findings"][0]["message"].startswith("encode_text: the server has not loaded it")


def test_a_server_that_refuses(
    port: str, etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKHOUSE_PORT", port)
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", "wrong")
    (finding,) = run(capsys, "--config-dir", str(etc), code=1)["findings"]
    assert "cannot be asked as default" in finding["message"]
    assert "--password" in finding["remedy"]


def test_another_server(
    port: str, etc: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert etc.is_dir()
    other = tmp_path / "other"
    TREES["stock of 26"].write(other / "etc", other / "data")
    server = ("--config-dir", str(other / "etc"), "--port", port, "--bundle", str(bundle))
    (finding,) = run(capsys, *server, code=1)["findings"]
    assert f"is another one: its data is in {tmp_path / 'data'}" in finding["message"]


def test_a_name_that_the_server_knows_otherwise(
    port: str, etc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "clickhouse_clip.installer.plan.Plan.functions", property(lambda _: ("plus", "UPPER"))
    )
    answer = run(capsys, "--config-dir", str(etc), "--port", port, "--dry-run", code=1)
    assert "plus (built into ClickHouse), UPPER (built into ClickHouse)" in answer["error"]


@pytest.mark.parametrize("tree", ["startup scripts of its own", "all in YAML", "scripts elsewhere"])
def test_preflight(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str], tree: str
) -> None:
    TREES[tree].write(tmp_path / "etc", tmp_path / "data")
    # What would reach other disks and machines is left out of the trial.
    (tmp_path / "etc" / "config.d").mkdir(exist_ok=True)
    (tmp_path / "etc" / "config.d" / "disks.xml").write_text(
        drop_in(
            "<storage_configuration><disks><other><path>/proc/nowhere/</path></other></disks>"
            "</storage_configuration><zookeeper><node><host>nowhere</host></node></zookeeper>"
        )
    )
    before = state(tmp_path)
    server = ("--config-dir", str(tmp_path / "etc"), "--preflight")
    assert len(good_functions(run(capsys, *server, "--bundle", str(bundle)))) == 5
    assert set(state(tmp_path / "data").entries) - set(before.entries) == {
        str(tmp_path / "data" / name)
        for name in (
            "clickhouse-clip",
            *(() if tree == "scripts elsewhere" else ("user_scripts/encode_text.py",)),
            *(() if tree == "scripts elsewhere" else ("user_scripts/encode_image.py",)),
        )
    }
    assert len(good_functions(run(capsys, *server))) == 5  # with nothing to do
    main(["--uninstall", "--config-dir", str(tmp_path / "etc")])
    assert state(tmp_path) == before


def test_preflight_that_fails_changes_nothing(
    etc: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", bundle, broken], check=True)
    (broken / "text.bin").write_bytes(b"")
    before = state(tmp_path)
    server = ("--config-dir", str(etc), "--preflight", "--bundle", str(broken))
    answer = run(capsys, *server, code=1)
    assert "the preflight failed: encode_text: a call fails" in answer["error"]
    assert "text.bin" in answer["error"]
    assert state(tmp_path) == before
