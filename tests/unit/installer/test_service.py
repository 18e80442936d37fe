from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clickhouse_clip.installer import service
from clickhouse_clip.udf import launch
from clickhouse_clip.udf.errors import ServiceError
from clickhouse_clip.udf.settings import Settings


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the service, and leaves when its stdin is closed."""
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    yield process
    process.stdin.close()
    process.wait(30)


@pytest.fixture
def settings(
    tmp_path: Path, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> Settings:
    (tmp_path / launch.SOCKET_NAME).touch()
    monkeypatch.setattr(launch, "request_report", lambda *_: {"pid": child.pid})
    return Settings(tmp_path / "bundle", runtime_dir=tmp_path, log_file=tmp_path / "log")


def test_stop_waits_until_the_service_has_gone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_STOP_SECONDS", 0.2)
    with pytest.raises(ServiceError, match="is still finishing its work"):
        service.stop(settings)


def test_stop_takes_a_process_that_nobody_has_collected_for_gone(
    settings: Settings, child: subprocess.Popen[bytes]
) -> None:
    assert child.stdin is not None
    child.stdin.close()
    deadline = time.monotonic() + 30
    while ") Z " not in Path(f"/proc/{child.pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert service.stop(settings)
