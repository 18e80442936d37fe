"""Which engine loads a tower: OpenVINO on the processor, or torch on a GPU.

torch is imported only where a GPU is asked for, or where `auto` finds all that it needs.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from clickhouse_clip.udf.bundle import Manifest
from clickhouse_clip.udf.engines import Tower, openvino
from clickhouse_clip.udf.errors import DeviceError
from clickhouse_clip.udf.settings import Settings

_log = logging.getLogger(__name__)

_DEVICES = Path("/dev")

#: What the NVIDIA driver makes there for each GPU, and what Windows makes for Linux inside of it.
_GPU_FILES = ("nvidia[0-9]*", "dxg")

_importing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Placed:
    """A tower that is ready, and where it runs.

    device: `cpu`, or a GPU with its name.
    precision: what it computes in.
    unused_gpu: why `auto` does not use the GPU that is there; empty if there is none.
    length_step: texts of bulk jobs are padded to multiples of it.
    batch_units: most tokens or pictures in a batch; None leaves it to the scheduler.
    """

    tower: Tower
    device: str
    precision: str
    length_step: int
    unused_gpu: str = ""
    batch_units: int | None = None


def load(
    settings: Settings,
    manifest: Manifest,
    kind: Literal["text", "image"],
    *,
    threads: int,
    lost: Callable[[], None],
) -> Placed:
    """Load one tower where the settings say. `lost` is called if its GPU fails for good later.

    Raises `DeviceError` if a GPU is asked for and cannot be used, `BundleError` if the tower's
    files are not the manifest's, `MemoryError` if it does not fit into memory.
    """
    unused = ""
    if settings.device.startswith("cuda") or (settings.device == "auto" and gpu_is_there()):
        try:
            return _load_on_gpu(settings, manifest, kind, lost)
        except DeviceError as error:
            if settings.device != "auto":
                raise
            unused = str(error)
            _log.warning("the GPU that is there is not used: %s", unused)
    precision = openvino.resolve_precision(settings.precision)
    tower = openvino.load(settings.bundle, manifest, kind, precision=precision, threads=threads)
    return Placed(tower, "cpu", precision, openvino.length_step(), unused)


def gpu_is_there() -> bool:
    """Whether this machine shows an NVIDIA GPU, asked without a library."""
    return any(next(_DEVICES.glob(pattern), None) for pattern in _GPU_FILES)


def import_engine(runtime_dir: Path) -> Any:
    """The module `engines.torch`.

    Importing torch makes temporary files, and the service may write nowhere but in its own folders
    (see `confine`).
    """
    with _importing, tempfile.TemporaryDirectory(dir=runtime_dir) as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            from clickhouse_clip.udf.engines import torch
        finally:
            tempfile.tempdir = before
    return torch


def _load_on_gpu(
    settings: Settings, manifest: Manifest, kind: Literal["text", "image"], lost: Callable[[], None]
) -> Placed:
    missing = []
    if not manifest.for_cuda:
        missing.append(
            "the bundle has no weights for it (export the model again, with clip-bundle export "
            "--cuda)"
        )
    if any(find_spec(name) is None for name in ("torch", "open_clip")):
        missing.append("torch and open_clip are missing (pip install 'clickhouse-clip[cuda]')")
    if missing:
        raise DeviceError(f"device {settings.device}: {', and '.join(missing)}")
    try:
        torch = import_engine(settings.runtime_dir)
    except (ImportError, OSError, RuntimeError) as error:  # as for libraries that do not fit
        raise DeviceError(f"device {settings.device}: torch cannot be imported: {error}") from error
    device = torch.find_device(settings.device)
    precision = torch.resolve_precision(settings.precision, device)
    tower = torch.load(
        settings.bundle, manifest, kind, device=settings.device, precision=precision, lost=lost
    )
    units = torch.BATCH_UNITS[kind]
    return Placed(tower, torch.describe(device), precision, torch.LENGTH_STEP, batch_units=units)
