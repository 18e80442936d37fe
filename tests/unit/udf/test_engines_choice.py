"""Which engine is chosen, with an engine of torch's that is not there: no GPU, no torch needed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import CUDA_FILES, FileEntry, Manifest, load_manifest
from clickhouse_clip.udf.engines import choice
from clickhouse_clip.udf.errors import BundleError, DeviceError, SettingsError
from clickhouse_clip.udf.settings import Settings
from tests import toy


@dataclass
class Machine:
    """What the choice finds: a GPU, torch, a bundle made for it, and what loading says to it."""

    settings: Settings
    manifest: Manifest
    asked: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def load(self, device: str = "auto", precision: Any = "fp32") -> choice.Placed:
        settings = replace(self.settings, device=device, precision=precision)
        return choice.load(settings, self.manifest, "text", threads=1, lost=lambda: None)


class GpuTower:
    def serve_two(self) -> None: ...

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.zeros((len(batch), toy.DIM), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def machine_with(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Machine]:
    def make(*, gpu: bool = True, torch: bool = True, weights: bool = True) -> Machine:
        manifest = load_manifest(bundle)
        if weights:
            more = {name: FileEntry("0" * 64, 1) for name in CUDA_FILES}
            manifest = replace(manifest, files={**manifest.files, **more})
        settings = Settings(bundle, tmp_path / "run", tmp_path / "log")
        machine = Machine(settings, manifest)
        (tmp_path / "dev").mkdir()
        (tmp_path / "run").mkdir()
        if gpu:
            (tmp_path / "dev" / "nvidia0").touch()

        def load(*_: Any, device: str, **__: Any) -> GpuTower:
            machine.asked.append(device)
            if machine.failure:
                raise machine.failure
            return GpuTower()

        def find_device(device: str) -> str:
            if not gpu:
                raise DeviceError("torch finds no GPU")
            return device

        engine = SimpleNamespace(
            load=load,
            find_device=find_device,
            describe=lambda device: f"{device} (a GPU)",
            resolve_precision=lambda precision, _: precision,
            BATCH_UNITS={"text": 5000, "image": 500},
            LENGTH_STEP=8,
        )
        monkeypatch.setattr(choice, "_DEVICES", tmp_path / "dev")
        monkeypatch.setattr(choice, "find_spec", lambda _: object() if torch else None)
        name = "clickhouse_clip.udf.engines.torch"
        monkeypatch.setitem(sys.modules, name, engine)
        monkeypatch.setattr("clickhouse_clip.udf.engines.torch", engine, raising=False)
        return machine

    return make


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:1"])
def test_a_gpu_is_used_where_all_it_needs_is_there(
    machine_with: Callable[..., Machine], device: str
) -> None:
    machine = machine_with()
    placed = machine.load(device)
    assert isinstance(placed.tower, GpuTower)
    assert (placed.device, placed.unused_gpu) == (f"{device} (a GPU)", "")
    assert placed.batch_units == 5000
    assert machine.asked == [device]


@pytest.mark.parametrize(
    ("device", "has"), [("cpu", {}), ("auto", {"gpu": False}), ("auto", {"gpu": 0, "torch": 0})]
)
def test_without_a_gpu_or_without_asking_it_is_the_processor_and_nothing_to_say(
    machine_with: Callable[..., Machine], device: str, has: dict[str, bool]
) -> None:
    machine = machine_with(**has)
    placed = machine.load(device)
    assert (placed.device, placed.precision, placed.unused_gpu) == ("cpu", "fp32", "")
    assert placed.batch_units is None
    assert placed.tower.encode(np.zeros((2, 8), np.int64)).shape == (2, toy.DIM)
    assert machine.asked == []


@pytest.mark.parametrize(
    ("has", "expected"),
    [
        ({"weights": False}, "clip-bundle export --cuda"),
        ({"torch": False}, r"clickhouse-clip\[cuda\]"),
        ({"weights": False, "torch": False}, r"export --cuda.*clickhouse-clip\[cuda\]"),
    ],
)
def test_what_a_gpu_lacks_is_named_and_auto_goes_on_without_it(
    machine_with: Callable[..., Machine],
    caplog: pytest.LogCaptureFixture,
    has: dict[str, bool],
    expected: str,
) -> None:
    machine = machine_with(**has)
    with pytest.raises(DeviceError, match=expected):
        machine.load("cuda")
    placed = machine.load("auto")
    assert placed.device == "cpu"
    assert placed.unused_gpu in caplog.text
    with pytest.raises(DeviceError, match=expected):
        raise DeviceError(placed.unused_gpu)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(
    machine_with: Callable[..., Machine],
) -> None:
    with pytest.raises(DeviceError, match="finds no GPU"):
        machine_with(gpu=False).load("cuda")


def test_a_gpu_without_room_fails_who_asked_for_it_and_auto_goes_on(
    machine_with: Callable[..., Machine],
) -> None:
    machine = machine_with()
    machine.failure = DeviceError("no room")
    with pytest.raises(DeviceError, match="no room"):
        machine.load("cuda")
    assert machine.load("auto").unused_gpu == "no room"


def test_a_damaged_bundle_is_an_error_whatever_the_device(
    machine_with: Callable[..., Machine],
) -> None:
    machine = machine_with()
    machine.failure = BundleError("damaged")
    with pytest.raises(BundleError, match="damaged"):
        machine.load("auto")


def test_a_torch_that_does_not_import_is_named(
    machine_with: Callable[..., Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = machine_with()
    monkeypatch.setitem(sys.modules, "clickhouse_clip.udf.engines.torch", None)
    monkeypatch.delattr("clickhouse_clip.udf.engines.torch")
    with pytest.raises(DeviceError, match="torch cannot be imported"):
        machine.load("cuda")
    assert "torch cannot be imported" in machine.load("auto").unused_gpu


def test_fp16_is_not_for_processors(machine_with: Callable[..., Machine]) -> None:
    with pytest.raises(SettingsError, match="fp16 is for GPUs"):
        machine_with().load("cpu", precision="fp16")


def test_a_processor_s_service_imports_no_torch(bundle: Path, tmp_path: Path) -> None:
    settings = Settings(bundle, tmp_path / "run", tmp_path / "log", device="auto")
    code = (
        "import pathlib, sys\n"
        "from clickhouse_clip.udf.bundle import load_manifest\n"
        "from clickhouse_clip.udf.encoder import Encoder\n"
        "from clickhouse_clip.udf.engines import choice\n"
        "from clickhouse_clip.udf.settings import Settings\n"
        f"choice._DEVICES = pathlib.Path({str(tmp_path)!r})\n"
        f"settings = Settings.from_json({settings.to_json()!r})\n"
        "encoder = Encoder(settings, load_manifest(settings.bundle))\n"
        "encoder.load('text'); encoder.load('image')\n"
        "import json; print(json.dumps([encoder.report()['device'], *sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    device, *loaded = json.loads(done.stdout)
    assert device == "cpu"
    assert not {"torch", "open_clip", "safetensors"} & {name.partition(".")[0] for name in loaded}
