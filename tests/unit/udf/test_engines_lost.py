"""A GPU that fails for good ends the service that used it, and the next query gets a new one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf import control
from clickhouse_clip.udf import service as service_module
from clickhouse_clip.udf.catalog import BY_NAME
from clickhouse_clip.udf.engines import choice
from clickhouse_clip.udf.errors import DeviceError
from clickhouse_clip.udf.service import Service
from clickhouse_clip.udf.settings import Settings
from tests import toy

# The service sets up its log.
pytestmark = pytest.mark.usefixtures("root_logger")


class Lost:
    """A tower on a GPU that has failed."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost

    def serve_two(self) -> None: ...

    def encode(self, _: NDArray[Any]) -> Any:
        self._lost()
        raise DeviceError("the GPU cuda:0 has failed")


@pytest.fixture
def settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # These tests run the service in their own process, which must keep its rights.
    monkeypatch.setattr(service_module, "confine", lambda _: True)
    bundle = toy.make_bundle(tmp_path / "bundle")
    settings = Settings(bundle, tmp_path / "run", tmp_path / "encoder.log")
    file = tmp_path / "settings.json"
    file.write_text(settings.to_json())
    return file


def test_the_service_has_stopped_listening_before_the_query_hears_of_it(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: Any, lost: Callable[[], None], **__: Any) -> choice.Placed:
        return choice.Placed(Lost(lost), "cuda:0 (a GPU)", "bf16", 8, batch_units=1000)

    monkeypatch.setattr(choice, "load", load)
    service = Service(settings_file)
    thread = threading.Thread(target=service.run)
    thread.start()
    option = ["--settings", str(settings_file)]
    assert control.main(["status", *option]) == 0
    assert "device         not loaded" in capsys.readouterr().out
    encoder = service._encoder
    encoder.load("text")
    assert control.main(["status", *option]) == 0
    assert "device         cuda:0 (a GPU)\nprecision      bf16" in capsys.readouterr().out
    window = encoder.start(BY_NAME["encode_text"], [b"a dog"], 1)
    with pytest.raises(DeviceError, match="has failed"):
        window.result()
    assert control.main(["status", *option]) == 3  # a worker would start a new one
    thread.join(30)
    assert not thread.is_alive()


def test_status_says_why_a_gpu_is_not_used(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (settings_file.parent / "nvidia0").touch()
    monkeypatch.setattr(choice, "_DEVICES", settings_file.parent)
    service = Service(settings_file)
    thread = threading.Thread(target=service.run)
    thread.start()
    service._encoder.load("text")
    assert control.main(["status", "--settings", str(settings_file)]) == 0
    output = capsys.readouterr().out
    assert (
        "device         cpu; there is a GPU, but device auto: the bundle has no weights" in output
    )
    assert control.main(["stop", "--settings", str(settings_file)]) == 0
    thread.join(30)
    assert not thread.is_alive()
    assert "the GPU that is there is not used" in (settings_file.parent / "encoder.log").read_text()
