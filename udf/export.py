"""Exporting an open_clip model as a bundle. Needs the package's `export` extra: torch, open_clip.

Both towers go through `torch.onnx.export(dynamo=True)`, the exporter that keeps batch and length
dynamic, and become OpenVINO models. They are then run and compared with open_clip; only if they
agree does the bundle appear under its name, whole. For CUDA, open_clip's configuration and the
weights are stored beside them (`cuda_weights`), and what is read from there is compared, too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from clickhouse_clip.udf import cuda_weights
from clickhouse_clip.udf.attention import written_out
from clickhouse_clip.udf.bundle import (
    CUDA_FILES,
    FILES,
    MANIFEST,
    TOKENIZER,
    ImageSpec,
    Manifest,
    TextSpec,
    describe_file,
    load_manifest,
)
from clickhouse_clip.udf.engines import Tower, openvino
from clickhouse_clip.udf.engines import torch as torch_engine
from clickhouse_clip.udf.engines.openvino import import_openvino
from clickhouse_clip.udf.errors import ExportError
from clickhouse_clip.udf.open_clip_models import CLIP_VOCABULARY, LoadedModel, Source, load_model
from clickhouse_clip.udf.staging import new_bundle
from clickhouse_clip.udf.text import BYTE_ORDER
from clickhouse_clip.udf.towers import ImageTower, TextTower

#: Greatest difference of any component of a normalised embedding that the self-check accepts.
#: Float32 in another order of operations differs by some 1e-6; a wrong graph by far more than this.
TOLERANCE = 5e-5

#: The same for weights that were rounded to float16. Computing in bfloat16, as a server does where
#: it can, makes a difference of this size too.
FLOAT16_TOLERANCE = 1e-3

#: Constants with fewer elements than this stay float32: they are small, and exact beyond doubt.
_COMPRESSED_ELEMENTS = 1024

_PACKAGES: tuple[str, ...] = (
    "clickhouse-clip",
    "open_clip_torch",
    "torch",
    "onnx",
    "onnxscript",
    "openvino",
    "numpy",
)


#: Those of the part for CUDA.
_CUDA_PACKAGES = ("safetensors", "timm")


def export(
    source: Source,
    output: Path,
    step: Callable[[str], None],
    *,
    float16: bool = False,
    cuda: bool = False,
) -> Manifest:
    """Export a model as the bundle `output`, a folder that must not be there yet.

    `step` is told what comes next. `float16` stores weights as float16: half the disk, and no
    change where they were float16 to begin with, as OpenAI's; but more memory in use, as only
    float32 weights stay in the mapped file (ViT-B/32 in bf16: 820 instead of 350 MB).
    `cuda` adds what a GPU is served from, which is as large again.
    Raises `ExportError`; whatever happens, `output` is a whole and
    checked bundle or is not there.
    """
    with new_bundle(output) as staging:
        return _export(source, staging, step, float16, cuda)


def _export(
    source: Source, staging: Path, step: Callable[[str], None], float16: bool, cuda: bool
) -> Manifest:
    step(f"loading {source.model} with {source.pretrained or source.checkpoint}")
    with _quiet():
        loaded = load_model(source)
    model = loaded.model
    activation = "QuickGELU" if loaded.quick_gelu else "GELU"
    image_spec = _image_spec(model.visual.preprocess_cfg)
    text_tower = TextTower(model, end_id=CLIP_VOCABULARY - 1).eval()
    image_tower = ImageTower(model, image_spec.mean, image_spec.std).eval()
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    tokens[:, 5] = CLIP_VOCABULARY - 1
    pixels = torch.zeros(2, image_spec.height, image_spec.width, 3, dtype=torch.uint8)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    step(f"exporting the text tower ({activation})")
    _convert(text_tower, "text", tokens, {0: batch, 1: length}, staging, float16)
    step(f"exporting the image tower ({activation})")
    _convert(image_tower, "image", pixels, {0: batch}, staging, float16)
    _write_tokenizer(staging / TOKENIZER)
    with torch.inference_mode():
        dim = int(text_tower(tokens).shape[1])
    text_spec = TextSpec(text_tower.context_length, CLIP_VOCABULARY, text_tower.causal, pad_id=0)
    names: tuple[str, ...] = FILES
    packages = _PACKAGES
    if cuda:
        step("storing the weights for CUDA")
        towers, specs = (text_tower, image_tower), (text_spec, image_spec)
        cuda_weights.write(staging, loaded.config, towers, specs, float16=float16)
        names += CUDA_FILES
        packages += _CUDA_PACKAGES
    step("hashing the files")
    manifest = Manifest(
        model=source.model,
        weights=loaded.weights,
        weights_sha256=loaded.weights_sha256,
        embedding_dim=dim,
        text=text_spec,
        image=image_spec,
        files={name: describe_file(staging / name) for name in names},
        made_with={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        identity="",
    )
    (staging / MANIFEST).write_bytes(manifest.to_json())
    manifest = load_manifest(staging)
    step("comparing the bundle with open_clip")
    tolerance = FLOAT16_TOLERANCE if float16 else TOLERANCE

    def on_cpu(kind: Literal["text", "image"]) -> Tower:
        return openvino.load(staging, manifest, kind, precision="fp32")

    def as_on_cuda(kind: Literal["text", "image"]) -> Tower:
        return torch_engine.load(staging, manifest, kind, device="cpu", precision="fp32")

    _check(loaded, on_cpu, manifest, tolerance)
    if cuda:
        _check(loaded, as_on_cuda, manifest, tolerance)
    return manifest


def _convert(
    tower: nn.Module,
    kind: Literal["text", "image"],
    example: torch.Tensor,
    dynamic: dict[int, Any],
    staging: Path,
    float16: bool,
) -> None:
    openvino = import_openvino()
    with tempfile.TemporaryDirectory(dir=staging) as folder:
        onnx = Path(folder) / f"{kind}.onnx"
        try:
            with _quiet(), torch.inference_mode(), written_out(tower):
                torch.onnx.export(
                    tower,
                    (example,),
                    onnx,
                    dynamo=True,
                    dynamic_shapes=(dynamic,),
                    external_data=True,
                    verbose=False,
                )
                converted = openvino.convert_model(onnx)
        except Exception as error:  # Every layer of the exporter has its own errors.
            first = str(error).strip().partition("\n")[0]
            raise ExportError(
                f"the {kind} tower cannot be exported: {type(error).__name__}: {first:.300}"
            ) from error
        if float16:
            _store_as_float16(openvino, converted)
        # OpenVINO counts its nodes' names through a process's life; named anew, the same weights
        # make the same file.
        for number, node in enumerate(converted.get_ordered_ops()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
        openvino.save_model(converted, staging / f"{kind}.xml", compress_to_fp16=False)


def _store_as_float16(openvino: Any, model: Any) -> None:
    """Store large constants as float16, those aside that it has no numbers for.

    OpenVINO's own compression would also round the small ones, such as the colours' mean.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        values = node.get_data()
        if values.size < _COMPRESSED_ELEMENTS:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.isfinite(half).all():
            wide = openvino.opset13.convert(openvino.opset13.constant(half), "f32")
            # What marks a weight as stored narrow, so that it is not unfolded again.
            wide.get_rt_info()["decompression_0"] = ""
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(wide.output(0))


def _image_spec(config: dict[str, Any]) -> ImageSpec:
    settings = open_clip.transform.PreprocessCfg(**config)
    height, width = open_clip.utils.to_2tuple(settings.size)
    if settings.interpolation not in ("bicubic", "bilinear"):
        # open_clip itself reads "random" as bicubic outside of training.
        settings.interpolation = "bicubic"
    mean, std = (
        tuple(values) if isinstance(values, (list, tuple)) else (values,) * 3
        for values in (settings.mean, settings.std)
    )
    return ImageSpec(
        height=int(height),
        width=int(width),
        mean=mean,
        std=std,
        interpolation=settings.interpolation,
        resize_mode=settings.resize_mode,
        fill_color=settings.fill_color,
    )


def _write_tokenizer(path: Path) -> None:
    """CLIP's merges as pairs of token ids, flat."""
    tokenizer = SimpleTokenizer()
    ids = tokenizer.encoder
    if [ids[tokenizer.byte_encoder[byte]] for byte in BYTE_ORDER] != list(range(256)):
        raise ExportError("open_clip's tokenizer has another order of bytes than CLIP's")
    merges = [ids[part] for pair in tokenizer.bpe_ranks for part in pair]
    values = {"type": "clip-bpe", "clean": "lower", "merges": merges}
    path.write_text(json.dumps(values, separators=(",", ":")))


def _check(
    loaded: LoadedModel,
    load: Callable[[Literal["text", "image"]], Tower],
    manifest: Manifest,
    tolerance: float,
) -> None:
    """Compare the exported towers with open_clip's, on random input of several shapes."""
    random = np.random.default_rng(0)
    text, image = manifest.text, manifest.image
    tower = load("text")
    shortest = 8 if text.causal else text.context_length
    for count, length in ((1, shortest), (3, 24), (2, text.context_length)):
        length = min(max(length, shortest), text.context_length)
        tokens = np.full((count, text.context_length), text.pad_id, np.int64)
        for row, end in zip(tokens, random.integers(1, length, count), strict=True):
            row[0], row[end] = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1
            row[1:end] = random.integers(1, CLIP_VOCABULARY - 2, end - 1)
        with torch.inference_mode():
            expected = loaded.model.encode_text(torch.from_numpy(tokens)).numpy()
        _compare("text", tower.encode(tokens[:, :length]), expected, tolerance)
    tower = load("image")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (image.mean, image.std))
    for count in (1, 3):
        pixels = random.integers(0, 256, (count, image.height, image.width, 3), np.uint8)
        with torch.inference_mode():
            planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 255
            expected = loaded.model.encode_image((planes - mean) / std).numpy()
        _compare("image", tower.encode(pixels), expected, tolerance)


def _compare(
    kind: str, actual: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float
) -> None:
    actual, expected = (
        values / np.linalg.norm(values, axis=1, keepdims=True) for values in (actual, expected)
    )
    difference = float(np.abs(actual - expected).max())
    if not difference <= tolerance:
        raise ExportError(
            f"the exported {kind} tower differs from open_clip's by {difference:.2g}"
            f" (at most {tolerance:.2g} is rounding): no bundle was made"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own warnings and logs: what fails raises, what differs is compared."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
