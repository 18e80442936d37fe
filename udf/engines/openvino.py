"""The encoder on CPU: OpenVINO, in float32 or bfloat16.

OpenVINO is imported when the first tower is loaded, so that importing this module costs nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import TOWER_FILES, Manifest, verify
from clickhouse_clip.udf.cpus import usable_cpus
from clickhouse_clip.udf.errors import BundleError, ServiceError
from clickhouse_clip.udf.settings import Precision

_CPUINFO = Path("/proc/cpuinfo")
#: Linux's names of the instructions that compute in bf16: without them bf16 is slower than fp32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def resolve_precision(precision: Precision) -> Literal["fp32", "bf16"]:
    """What `auto` stands for here: bf16 where the processor computes in it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if _BF16_FLAGS & _processor_flags() else "fp32"


def _processor_flags() -> set[str]:
    try:
        with _CPUINFO.open() as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


class OpenVinoTower:
    """One tower, compiled for this machine's CPU. See `engines.Tower` for shapes and types.

    For one caller at a time: a tower has one inference request.
    """

    def __init__(self, request: Any, dim: int) -> None:
        self._request = request
        self._dim = dim

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Encode one batch: (n, length) int64 or (n, height, width, 3) uint8 to (n, dim)."""
        if not len(batch):
            return np.empty((0, self._dim), np.float32)
        # share_inputs: the batch is only read, while this call lasts. The output is OpenVINO's
        # memory, overwritten by the next call, so it is copied.
        outputs = self._request.infer([np.ascontiguousarray(batch)], share_inputs=True)
        return np.array(outputs[0], np.float32)


def load(
    directory: Path,
    manifest: Manifest,
    kind: Literal["text", "image"],
    *,
    precision: Precision = "auto",
    threads: int = 0,
) -> OpenVinoTower:
    """Load one tower of a bundle.

    threads: 0 takes as many as this process has processors. Raises `BundleError` if the tower's
    files are not those of the manifest, `ServiceError` if OpenVINO cannot compile them.
    """
    verify(directory, manifest, TOWER_FILES[kind])
    # Its telemetry would start a thread and look for a home folder.
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLED", "1")
    import openvino
    import openvino.properties as properties
    import openvino.properties.hint as hint

    resolved = resolve_precision(precision)
    config = {
        hint.inference_precision: openvino.Type.bf16 if resolved == "bf16" else openvino.Type.f32,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        properties.inference_num_threads: threads or usable_cpus(),
        properties.num_streams: 1,
        # A pinned thread waits for its processor, even if ClickHouse keeps that one busy.
        hint.enable_cpu_pinning: False,
    }
    path = directory / TOWER_FILES[kind][0]
    try:
        compiled = openvino.Core().compile_model(path, "CPU", config)
    except RuntimeError as error:
        raise ServiceError(f"{path}: OpenVINO cannot load it: {error}") from error
    shape = compiled.output(0).partial_shape
    if len(shape) != 2 or shape[1] != manifest.embedding_dim:
        raise BundleError(
            f"{path}: gives {shape}, the manifest says {manifest.embedding_dim} dimensions;"
            " export the model again"
        )
    return OpenVinoTower(compiled.create_infer_request(), manifest.embedding_dim)
