"""The encoder on a CUDA GPU: open_clip's towers in torch, in float32, bfloat16 or float16.

Needs the package's `cuda` extra. Only `engines.choice` imports this module, where a GPU is to be
used: `import torch` and `import open_clip` take seconds.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import CUDA_TOWER_FILES, Manifest, verify
from clickhouse_clip.udf.cuda_weights import Kind, Weights, narrow
from clickhouse_clip.udf.errors import DeviceError
from clickhouse_clip.udf.settings import Precision

_log = logging.getLogger(__name__)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Units (tokens, pictures) that the scheduler may put into one batch.
BATCH_UNITS = {"text": 1 << 16, "image": 1024}

#: Lengths of texts are multiples of this, as tensor cores like them.
LENGTH_STEP = 8

#: Units that go through the tower together: a batch is encoded in pieces of this size, so that one
#: piece is copied to the GPU while the one before is computed, and less memory is needed.
_PIECE_UNITS = {"text": 1 << 14, "image": 256}

#: Of the GPU's memory that is free when a tower is loaded, the share that this process may take.
_MEMORY_SHARE = 0.8


class TorchTower:
    """One tower on one device; see `engines.Tower` for shapes and types. Two threads share it.

    A batch that does not fit into the GPU's memory is encoded in smaller pieces, and so are all
    later ones. If the GPU has failed, so that nothing works on it any more in this process, `lost`
    is called before `DeviceError` is raised.
    """

    def __init__(
        self,
        tower: Callable[[torch.Tensor], torch.Tensor],
        dim: int,
        device: torch.device,
        *,
        piece_units: int,
        lost: Callable[[], None],
    ) -> None:
        self._tower = tower
        self._dim = dim
        self._device = device
        self._units = piece_units
        self._lost = lost

    def serve_two(self) -> None:
        """Nothing to do: a GPU takes what comes from any thread."""

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Encode one batch: (n, length) int64 or (n, height, width, 3) uint8 to (n, dim)."""
        if not len(batch):
            return np.empty((0, self._dim), np.float32)
        try:
            with torch.inference_mode(), _on(self._device):
                return self._encode(np.ascontiguousarray(batch))
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the memory of {self._device} does not hold one row of a batch; "
                "free some of it, or set device to cpu"
            ) from error
        except RuntimeError as error:
            if works(self._device):
                raise
            self._lost()
            raise DeviceError(
                f"the GPU {self._device} has failed ({_first_line(error)}); "
                "the next query starts a new encoder service"
            ) from error

    def _encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        row_units = batch.shape[1] if batch.ndim == 2 else 1
        done = []
        first = 0
        while first < len(batch):
            piece = batch[first : first + max(1, self._units // row_units)]
            try:
                # Returns before the GPU is done, and the next piece is copied meanwhile.
                done.append(self._tower(self._upload(piece)))
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise
                self._units = min(self._units, len(piece) // 2 * row_units)
                _log.warning(
                    "%s: out of memory; pieces of %d from now on", self._device, self._units
                )
            else:
                first += len(piece)
        return np.asarray(torch.cat(done).float().cpu().numpy())

    def _upload(self, piece: NDArray[Any]) -> torch.Tensor:
        values = torch.from_numpy(piece)
        if self._device.type == "cuda":
            values = values.pin_memory()  # or the copy would wait for the GPU
        return values.to(self._device, non_blocking=True)


def load(
    directory: Path,
    manifest: Manifest,
    kind: Kind,
    *,
    device: str = "cuda",
    precision: Precision = "auto",
    lost: Callable[[], None] = lambda: None,
) -> TorchTower:
    """Load one tower of a bundle exported for CUDA, and encode with it once, so that it is ready.

    device: as the setting; `cpu` is for tests. Raises `BundleError` if the tower's files are not
    those of the manifest or do not fit it, `DeviceError` if the device cannot be used.
    """
    verify(directory, manifest, CUDA_TOWER_FILES[kind])
    place = find_device(device)
    weights = Weights(directory, manifest, kind)
    chosen = resolve_precision(precision, place)
    # With TF32, "fp32" would multiply with 10 bits of precision.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), _on(place):
            limit_memory(place)
            module = weights.tower(place)
        tower = TorchTower(
            module, manifest.embedding_dim, place, piece_units=_PIECE_UNITS[kind], lost=lost
        )
        weights.check(tower.encode(weights.probe()))
        if chosen != "fp32":
            with torch.inference_mode(), _on(place):
                narrow(module, _DTYPES[chosen])
                torch.cuda.empty_cache()  # of the wide weights; without a GPU it does nothing
            weights.check_narrow(tower.encode(weights.probe()), chosen)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the {kind} tower does not fit into the free memory of {place}; "
            "free some of it, or set device to cpu"
        ) from error
    except RuntimeError as error:
        raise DeviceError(f"{place} cannot be used: {_first_line(error)}") from error
    return tower


def find_device(device: str) -> torch.device:
    """The device that a setting names; `auto` and `cuda` are the first GPU.

    Raises `DeviceError` if torch cannot use it.
    """
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = torch.version.cuda or "no version of it"
        raise DeviceError(
            f"device {device}: torch {torch.__version__}, built for CUDA ({built}), finds no GPU; "
            "nvidia-smi says whether there is one and whether its driver is new enough"
        )
    index = int(device.partition(":")[2] or 0)
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"device {device}: no such GPU; this machine has cuda:0 to cuda:{count - 1}"
        )
    return torch.device("cuda", index)


def resolve_precision(
    precision: Precision, device: torch.device
) -> Literal["fp32", "bf16", "fp16"]:
    """What a setting means on a device.

    `auto` is bf16 on a GPU that computes in it (compute capability 8.0, Ampere, and later), fp16
    where only that is fast (7.0, Volta and Turing), else fp32.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"


def describe(device: torch.device) -> str:
    """A device's name for people: `cuda:0 (NVIDIA A10)`."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def limit_memory(device: torch.device) -> None:
    """Leave others some of the GPU's memory: this process takes at most a share of what is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        most = torch.cuda.memory_reserved(device) + _MEMORY_SHARE * free
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)


def works(device: torch.device) -> bool:
    """Whether a device still computes; after some errors it never does in the same process."""
    try:
        torch.ones(1, device=device).add_(1).cpu()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the thread's current one, so that no memory is taken on the first one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
