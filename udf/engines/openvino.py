"""The encoder on CPU: OpenVINO, in float32 or bfloat16.

OpenVINO is imported when the first tower is loaded, so that importing this module costs nothing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import TOWER_FILES, Manifest, verify
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.errors import BundleError, SettingsError
from clickhouse_clip.udf.settings import Precision

_log = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
_MAPS = Path("/proc/self/maps")
_MADV_DONTNEED = 4

#: Weights up to this size are kept a second time, so that searches never wait for bulk work. Those
#: of ViT-B/32 are smaller, but for the pictures' in float32; beyond, memory counts for more.
_COPIED_BYTES = 256 << 20

#: Linux's names of the instructions that compute in bf16; without them bf16 is slower than fp32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def import_openvino() -> Any:
    """The module `openvino`, without its telemetry.

    Importing it sends a message to Google Analytics unless the user's home folder holds a file that
    declines; a database server must not do that. OpenVINO runs as well with that package missing,
    which is what None stands for in `sys.modules`.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    # Of oneDNN: by default it keeps 1,024 kernels beside OpenVINO's own, 100 MB for nothing.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    import openvino
    import openvino.opset13
    import openvino.properties.hint

    return openvino


def resolve_precision(precision: Precision) -> Literal["fp32", "bf16"]:
    """What a setting means here: `auto` is bf16 where the processor computes in it, else fp32."""
    if precision == "fp16":
        raise SettingsError("precision: fp16 is for GPUs; on the processor, set auto, bf16 or fp32")
    if precision != "auto":
        return precision
    return "bf16" if _BF16_FLAGS & _processor_flags() else "fp32"


def length_step() -> int:
    """What lengths of texts should be multiples of.

    A token costs the same at any length, but for processors with AMX, which are slow at odd ones.
    """
    return 2 if "amx_bf16" in _processor_flags() else 1


def _processor_flags() -> set[str]:
    try:
        with _CPUINFO.open() as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return set()
    return set(flags.partition(":")[2].split())


class OpenVinoTower:
    """One tower, compiled for this machine's CPU; see `engines.Tower` for shapes and types.

    A compiled model computes one batch at a time with all its threads (several streams would share
    the threads out, and a single text take twice as long). So to serve two threads at once the
    model is compiled a second time, in the background; until then, and without `twice`, one waits
    for the other's batch.
    """

    def __init__(
        self,
        compile_: Callable[[], Any],
        warm_up: Callable[[Any], None],
        dim: int,
        *,
        twice: bool = True,
    ) -> None:
        self._compile = compile_
        self._warm_up = warm_up
        self._dim = dim
        self._may_copy = twice
        self._requests = [compile_()]
        self._turns: deque[object] = deque()
        self._changed = threading.Condition()

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Encode one batch: (n, length) int64 or (n, height, width, 3) uint8 to (n, dim)."""
        if not len(batch):
            return np.empty((0, self._dim), np.float32)
        request = self._take()
        # share_inputs: OpenVINO reads the batch in place, and has done so when infer() returns. Its
        # output is memory that the next call overwrites, so that is copied.
        try:
            outputs = request.infer([np.ascontiguousarray(batch)], share_inputs=True)
            return np.array(outputs[0], np.float32)
        finally:
            self._give_back(request)

    def _take(self) -> Any:
        """First come, first served: bulk work must not take its next turn before a search."""
        turn = object()
        with self._changed:
            self._turns.append(turn)
            self._changed.wait_for(lambda: self._requests and self._turns[0] is turn)
            self._turns.popleft()
            self._changed.notify_all()  # the next one may have a second request to take
            return self._requests.pop()

    def _give_back(self, request: Any) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def serve_two(self) -> None:
        """Compile the model a second time, once."""
        with self._changed:
            wanted, self._may_copy = self._may_copy, False
        if not wanted:
            return
        try:
            threading.Thread(target=self._add_copy, name="compile", daemon=True).start()
        except RuntimeError as error:  # too many threads, or too little memory for one
            _warn_of_one(error)

    def _add_copy(self) -> None:
        try:
            request = self._compile()
            self._warm_up(request)
        except Exception as error:  # as for want of memory: the one that is there goes on alone
            _warn_of_one(error)
        else:
            self._give_back(request)


def _warn_of_one(error: Exception) -> None:
    _log.warning("searches will wait for bulk work, a second model has no room: %s", error)


def load(
    directory: Path,
    manifest: Manifest,
    kind: Literal["text", "image"],
    *,
    precision: Precision = "auto",
    threads: int = 0,
) -> OpenVinoTower:
    """Load one tower of a bundle and encode with it once, so that it is ready.

    threads: 0 takes as many as this process may use. Raises `BundleError` if the tower's files are
    not those of the manifest or do not fit it, `MemoryError` if it does not fit into memory.
    """
    network, weights = TOWER_FILES[kind]
    # OpenVINO reads no description of a network that has not been checked. Hashing the weights
    # takes as long as compiling: they go side by side, and nothing is answered before both.
    verify(directory, manifest, [network])
    with ThreadPoolExecutor(1, "verify") as pool:
        verified = pool.submit(verify, directory, manifest, [weights])
        try:
            tower = _compile(directory, manifest, kind, precision, threads)
        except Exception:
            verified.result()  # a damaged file is the reason, not what it made OpenVINO say
            raise
        verified.result()
    _give_back_mapped(directory / weights)
    return tower


def _compile(
    directory: Path,
    manifest: Manifest,
    kind: Literal["text", "image"],
    precision: Precision,
    threads: int,
) -> OpenVinoTower:
    openvino = import_openvino()
    hint, properties = openvino.properties.hint, openvino.properties
    bf16 = resolve_precision(precision) == "bf16"
    config = {
        hint.inference_precision: openvino.Type.bf16 if bf16 else openvino.Type.f32,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        properties.inference_num_threads: threads or usable_cpus(),
        properties.num_streams: 1,
        # A pinned thread waits for its processor, even while ClickHouse keeps that one busy.
        hint.enable_cpu_pinning: False,
    }
    path, weights = (directory / name for name in TOWER_FILES[kind])
    example = _example(manifest, kind)

    def compile_() -> Any:
        return openvino.Core().compile_model(path, "CPU", config).create_infer_request()

    def warm_up(request: Any) -> None:
        request.infer([example])
        _give_back_mapped(weights)

    try:
        # In bf16 weights take half of what they take in the file.
        twice = weights.stat().st_size <= (2 * _COPIED_BYTES if bf16 else _COPIED_BYTES)
        tower = OpenVinoTower(compile_, warm_up, manifest.embedding_dim, twice=twice)
        shape = tower.encode(example).shape
    except RuntimeError as error:
        if "alloc" in str(error):
            raise MemoryError from error
        raise BundleError(f"{path}: OpenVINO cannot load it: {error}") from error
    if shape != (1, manifest.embedding_dim):
        raise BundleError(
            f"{path}: gives embeddings of shape {shape[1:]}, the manifest says"
            f" {manifest.embedding_dim} dimensions; export the model again"
        )
    return tower


def _example(manifest: Manifest, kind: Literal["text", "image"]) -> NDArray[Any]:
    if kind == "image":
        return np.zeros((1, manifest.image.height, manifest.image.width, 3), np.uint8)
    length = 8 if manifest.text.causal else manifest.text.context_length
    example = np.zeros((1, min(length, manifest.text.context_length)), np.int64)
    # The greatest id is the end of a text: the tower needs one to read its answer at.
    example[0, 1] = manifest.text.vocab_size - 1
    return example


def _give_back_mapped(path: Path) -> None:
    """Take the mapped weights' pages out of this process's memory; what is read again comes back.

    OpenVINO maps the file and keeps, from the first inference on, a copy of most weights in the
    layout and the precision that it computes in. For ViT-B/32 in bf16 this is 240 of 430 MB of the
    text tower and 330 of 620 MB of the image tower.
    """
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    real = str(path.resolve())
    for line in _MAPS.read_text().splitlines():
        # "from-to permissions offset device inode path", see proc(5). Only shared and read-only
        # mappings: from others, private changes would be lost.
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5] == real and fields[1] == "r--s":
            start, end = (int(address, 16) for address in fields[0].split("-"))
            libc.madvise(start, end - start, _MADV_DONTNEED)
