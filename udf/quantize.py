"""Quantising a bundle to int8: a quarter of the disk, and faster where the processor has VNNI.

Weights become int8 with one scale for each output; activations are rounded by OpenVINO while it
runs, with a scale for each group of `_GROUP` values (its "dynamic quantization"). Before that, the
range of each input channel is shared between weights and activations (SmoothQuant, Xiao et al.,
2023, https://arxiv.org/abs/2211.10438, equation 4 with alpha = 0.5): transformers have a few
channels that are far larger than the others, and a common scale would leave nothing of those.
Needs no torch: it works on the bundle itself.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import (
    FILES,
    MANIFEST,
    TOKENIZER,
    TOWER_FILES,
    ImageSpec,
    Manifest,
    TextSpec,
    describe_file,
    load_manifest,
    verify,
)
from clickhouse_clip.udf.engines.openvino import import_openvino, load
from clickhouse_clip.udf.errors import ExportError
from clickhouse_clip.udf.staging import new_bundle

#: Least cosine of an embedding to the one of the bundle that was quantised.
LEAST_COSINE = 0.99

#: Activations that share a scale. Smaller groups are more exact and slower: 128 cost a quarter.
_GROUP = 512

#: SmoothQuant's alpha: how much of a channel's range goes to the weights.
_ALPHA = 0.5

#: Inputs that the ranges are measured with, and others that the result is compared with.
_SAMPLES = 64
_BATCH = 8

TowerName = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosines between the embeddings of the quantised tower and those before: least and mean."""

    least: float
    mean: float


def quantize(
    source: Path, output: Path, step: Callable[[str], None]
) -> tuple[Manifest, dict[TowerName, Fidelity]]:
    """Quantise the bundle `source` to int8, as the bundle `output`, which must not be there yet.

    What a GPU is served from is left out. `step` is told what comes next. Returns the new manifest,
    and how close the embeddings stayed. Raises `BundleError` if `source` is not whole,
    `ExportError` if `output` cannot be written or one of its embeddings has a cosine below
    `LEAST_COSINE` to that of `source`. Whatever happens, `output` is a whole and checked bundle or
    is not there.
    """
    manifest = load_manifest(source)
    step(f"checking {source}")
    verify(source, manifest)
    with new_bundle(output) as staging:
        (staging / TOKENIZER).write_bytes((source / TOKENIZER).read_bytes())
        towers: tuple[TowerName, ...] = ("text", "image")
        for kind in towers:
            step(f"quantising the {kind} tower")
            _quantize_tower(source, staging, manifest, kind)
        quantised = replace(
            manifest,
            weights=f"{manifest.weights}, int8",
            files={name: describe_file(staging / name) for name in FILES},
            made_with={
                **manifest.made_with,
                "quantised with": ", ".join(
                    f"{name} {importlib.metadata.version(name)}"
                    for name in ("clickhouse-clip", "openvino", "numpy")
                ),
            },
        )
        (staging / MANIFEST).write_bytes(quantised.to_json())
        quantised = load_manifest(staging)
        fidelity = {}
        for kind in towers:
            step(f"comparing the {kind} tower with the one before")
            fidelity[kind] = _compare(source, manifest, staging, quantised, kind)
    return quantised, fidelity


def _quantize_tower(source: Path, staging: Path, manifest: Manifest, kind: TowerName) -> None:
    openvino = import_openvino()
    core = openvino.Core()
    network, _ = TOWER_FILES[kind]
    model = core.read_model(source / network)
    if not _weighted(model):
        raise ExportError(
            f"{source}: the {kind} tower has no float weights, it is quantised already"
        )
    ranges = _input_ranges(openvino, core.read_model(source / network), manifest, kind)
    for matmul, largest in zip(_weighted(model), ranges, strict=True):
        _quantize_weights(openvino.opset13, matmul, largest)
    model.set_rt_info(str(_GROUP), ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    openvino.save_model(model, staging / network, compress_to_fp16=False)


def _weighted(model: Any) -> list[Any]:
    """The products of activations with a matrix of weights, in the graph's order."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "MatMul" and _weights(node) is not None
    ]


def _weights(matmul: Any) -> NDArray[np.float32] | None:
    """The constant second factor as float32 of shape (inputs, outputs); None if it is none."""
    node = matmul.input_value(1).get_node()
    if node.get_type_name() == "Convert":  # as weights stored in float16 have
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 2:
        return None
    values: NDArray[np.float32] = node.get_data().astype(np.float32)
    return values.T if matmul.get_attributes()["transpose_b"] else values


def _input_ranges(
    openvino: Any, model: Any, manifest: Manifest, kind: TowerName
) -> list[NDArray[np.float32]]:
    """The greatest magnitude of each input channel of each weighted product, over the samples."""
    # Products may share an input, as those of an attention do.
    inputs = {_name(matmul): matmul.input_value(0) for matmul in _weighted(model)}
    names = [_name(matmul) for matmul in _weighted(model)]
    model.add_outputs(list(inputs.values()))
    compiled = openvino.Core().compile_model(model, "CPU")
    largest: dict[tuple[str, int], Any] = dict.fromkeys(inputs, 0)
    for batch in _samples(manifest, kind, seed=0):
        outputs = compiled([batch])
        for number, name in enumerate(inputs, 1):  # output 0 is the embeddings
            values = outputs[number]
            found = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0)
            largest[name] = np.maximum(largest[name], found)
    return [largest[name] for name in names]


def _name(matmul: Any) -> tuple[str, int]:
    source = matmul.input_value(0)
    return source.get_node().get_friendly_name(), source.get_index()


def _quantize_weights(opset: Any, matmul: Any, largest: NDArray[np.float32]) -> None:
    """Replace a product by one with int8 weights, its input channels scaled to like ranges."""
    weights = _weights(matmul)
    assert weights is not None
    heaviest = np.abs(weights).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = largest**_ALPHA / heaviest ** (1 - _ALPHA)
    smooth[~np.isfinite(smooth) | (smooth == 0)] = 1  # channels that are never used
    weights = weights * smooth[:, None]
    scale = np.abs(weights).max(axis=0) / 127
    scale[scale == 0] = 1
    values = np.rint(weights / scale).astype(np.int8)
    # Stored as (outputs, inputs), as OpenVINO's kernels for compressed weights want it.
    narrow = opset.convert(opset.constant(np.ascontiguousarray(values.T)), "f32")
    factor = opset.multiply(narrow, opset.constant(scale[:, None].astype(np.float32)))
    shared = opset.multiply(matmul.input_value(0), opset.constant((1 / smooth).astype(np.float32)))
    product = opset.matmul(shared, factor, False, True)
    matmul.output(0).replace(product.output(0))


def _samples(manifest: Manifest, kind: TowerName, seed: int) -> list[NDArray[Any]]:
    """Batches of made-up texts or pictures; the model is real, so its ranges are."""
    random = np.random.default_rng(seed)
    make = _texts if kind == "text" else _pictures
    spec: Any = manifest.text if kind == "text" else manifest.image
    return [make(spec, random) for _ in range(_SAMPLES // _BATCH)]


def _texts(spec: TextSpec, random: np.random.Generator) -> NDArray[np.int64]:
    length = spec.context_length
    tokens = np.full((_BATCH, length), spec.pad_id, np.int64)
    # Frequent words have low ids: CLIP's merges are in the order of their frequency.
    ids = np.exp(random.uniform(np.log(256), np.log(spec.vocab_size - 2), tokens.shape))
    for row, end in enumerate(random.integers(2, length, _BATCH)):
        tokens[row, 0], tokens[row, end] = spec.vocab_size - 2, spec.vocab_size - 1
        tokens[row, 1:end] = ids[row, 1:end]
    return tokens


def _pictures(spec: ImageSpec, random: np.random.Generator) -> NDArray[np.uint8]:
    """Soft fields of colour with grain and some sharp edges."""
    shape = (_BATCH, spec.height, spec.width, 3)
    cell = max(1, spec.height // int(random.integers(2, 12)))
    rows, columns = (np.arange(size) // cell for size in shape[1:3])
    coarse = random.uniform(0, 255, (_BATCH, rows[-1] + 1, columns[-1] + 1, 3))
    fields = coarse[:, rows][:, :, columns]
    grain = random.normal(0, random.uniform(0, 40), shape)
    return np.clip(fields + grain, 0, 255).astype(np.uint8)


def _compare(
    source: Path, before: Manifest, staging: Path, after: Manifest, kind: TowerName
) -> Fidelity:
    samples = _samples(before, kind, seed=1)
    # In float32: what is compared is the quantisation alone.
    embeddings = []
    for directory, manifest in ((source, before), (staging, after)):
        tower = load(directory, manifest, kind, precision="fp32")
        vectors = np.concatenate([tower.encode(batch) for batch in samples])
        embeddings.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    cosines = (embeddings[0] * embeddings[1]).sum(axis=1)
    least = float(cosines.min())
    if not least >= LEAST_COSINE:
        raise ExportError(
            f"int8 does not suit this model: an embedding of its {kind} tower has a cosine of "
            f"{least:.3f} to the one before (at least {LEAST_COSINE} is asked for); no bundle was "
            "made"
        )
    return Fidelity(least, float(cosines.mean()))
