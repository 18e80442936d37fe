"""The part of a bundle that a GPU is served from: open_clip's configuration, and plain weights.

open_clip builds the architecture from its configuration; the weights are safetensors files, with no
code in them and of no torch version's format. What the versions at hand make of them is checked: a
probe, an input that is always the same, must get the embedding that it had when it was exported.

Needs torch, open_clip and safetensors; only `export` and `engines.torch` import it.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from clickhouse_clip.udf.bundle import (
    CONFIGURATION,
    CUDA_TOWER_FILES,
    ImageSpec,
    Manifest,
    TextSpec,
)
from clickhouse_clip.udf.errors import BundleError
from clickhouse_clip.udf.open_clip_models import build_model, refusal
from clickhouse_clip.udf.towers import ImageTower, TextTower, tensors_of

Kind = Literal["text", "image"]
Specs = tuple[TextSpec, ImageSpec]

#: Greatest difference of any component of the probe's normalised embedding in float32. Another
#: device or order of operations differs by some 1e-6; GELU for QuickGELU by more than this.
_TOLERANCE = 1e-4

#: Least cosine between the probe's embeddings in a narrow type and in float32; 0.9999 is usual.
_NARROW_COSINE = 0.99

_PACKAGES = ("torch", "open_clip_torch", "timm")

#: Of the image tower: applied to pixels, so they stay float32 in every precision.
_EXACT = ("mean", "std")


def write(
    directory: Path,
    config: Mapping[str, Any],
    towers: tuple[TextTower, ImageTower],
    specs: Specs,
    *,
    float16: bool,
) -> None:
    """Write the files `bundle.CUDA_FILES` of two towers that are on the CPU, in float32.

    config: of `LoadedModel`. float16: store weights as float16, except tensors with values that it
    has no numbers for.
    """
    probes = {}
    kinds: tuple[Kind, Kind] = ("text", "image")
    for kind, tower in zip(kinds, towers, strict=True):
        path = directory / CUDA_TOWER_FILES[kind][1]
        tensors = tensors_of(tower)
        # Copies, because safetensors refuses tensors that share memory.
        save_file({name: _stored(name, tensors[name], float16) for name in tensors}, path)
        built = _build(kind, config, specs)
        _fill(built, path, torch.device("cpu"))
        with torch.inference_mode():
            embedding = built(torch.from_numpy(probe(kind, *specs)))[0].numpy()
        probes[kind] = [round(float(value), 7) for value in embedding / np.linalg.norm(embedding)]
    content = {"config": dict(config), "probes": probes}
    (directory / CONFIGURATION).write_text(json.dumps(content, indent=1) + "\n")


def probe(kind: Kind, text: TextSpec, image: ImageSpec) -> NDArray[Any]:
    """A batch of one: a text of a few tokens, or a pattern of colours.

    Bundles hold its embedding, so it must stay as it is.
    """
    if kind == "image":
        values = np.arange(image.height * image.width * 3, dtype=np.int64) * 7 % 251
        return values.astype(np.uint8).reshape(1, image.height, image.width, 3)
    length = min(8, text.context_length) if text.causal else text.context_length
    tokens = np.full((1, length), text.pad_id, np.int64)
    end = min(5, length - 1)
    tokens[0, : end + 1] = [text.vocab_size - 2, *range(97, 97 + end - 1), text.vocab_size - 1]
    return tokens


class Weights:
    """One tower of a bundle, as its files say; the caller has checked their hashes."""

    def __init__(self, directory: Path, manifest: Manifest, kind: Kind) -> None:
        self._manifest = manifest
        self._kind: Kind = kind
        self._path = directory / CUDA_TOWER_FILES[kind][1]
        path = directory / CONFIGURATION
        try:
            content = json.loads(path.read_bytes())
            self._config = dict(content["config"])
            self._expected = np.array(content["probes"][kind], np.float32)
            reason = refusal(manifest.model, self._config)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: is no configuration of an open_clip model") from error
        if reason or self._expected.shape != (manifest.embedding_dim,):
            raise BundleError(f"{path}: does not fit the manifest; export the model again")

    def tower(self, device: torch.device) -> nn.Module:
        """The tower on a device, in float32. Raises `BundleError` if the weights do not fit it."""
        try:
            tower = _build(self._kind, self._config, (self._manifest.text, self._manifest.image))
        except Exception as error:  # open_clip and timm have all kinds
            raise self._misfit(f"open_clip cannot build the tower ({error!s:.200})") from error
        try:
            _fill(tower, self._path, device)
        except (ValueError, SafetensorError) as error:
            raise self._misfit(f"does not fit the tower that open_clip builds ({error})") from error
        return tower

    def probe(self) -> NDArray[Any]:
        """The input whose embeddings are checked."""
        return probe(self._kind, self._manifest.text, self._manifest.image)

    def check(self, embeddings: NDArray[np.float32]) -> None:
        """Raises `BundleError` unless these, shape (1, dim), are the probe's, in float32."""
        if embeddings.shape == (1, len(self._expected)):
            normalised = embeddings[0] / np.linalg.norm(embeddings[0])
            if np.abs(normalised - self._expected).max() <= _TOLERANCE:
                return
        raise self._misfit("gives other embeddings than when it was exported")

    def check_narrow(self, embeddings: NDArray[np.float32], precision: str) -> None:
        """Raises `BundleError` unless these, shape (1, dim), are near the probe's in float32."""
        cosine = float(embeddings[0] @ self._expected / np.linalg.norm(embeddings[0]))
        if not cosine >= _NARROW_COSINE:  # or it is no number
            raise BundleError(
                f"{self._path}: does not keep its embeddings in {precision} (cosine {cosine:.3f} "
                "to fp32); set precision to fp32"
            )

    def _misfit(self, what: str) -> BundleError:
        made = self._manifest.made_with
        then = ", ".join(f"{name} {made.get(name, '?')}" for name in _PACKAGES)
        now = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
        return BundleError(
            f"{self._path}: {what}; export the model again with {now}, which are here, or install "
            f"what made it: {then}"
        )


def narrow(tower: nn.Module, dtype: torch.dtype) -> None:
    """Let a tower compute in another type; only colours are normalised in float32 as before."""
    for name, tensor in tensors_of(tower).items():
        if tensor.is_floating_point() and name not in _EXACT:
            _place(tower, name, tensor.detach().to(dtype))
    if isinstance(tower, ImageTower):
        tower.visual.register_forward_pre_hook(lambda _, images: (images[0].to(dtype),))


def _stored(name: str, tensor: torch.Tensor, float16: bool) -> torch.Tensor:
    if float16 and tensor.dtype == torch.float32 and name not in _EXACT:
        half = tensor.detach().half()
        if half.isfinite().equal(tensor.isfinite()):
            return half.contiguous()
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _build(kind: Kind, config: Mapping[str, Any], specs: Specs) -> nn.Module:
    """A tower without its weights: nothing is computed or held for what is about to be read."""
    text, image = specs
    with torch.device("meta"):
        model = build_model(config)
        if kind == "text":
            return TextTower(model, end_id=text.vocab_size - 1).eval()
        return ImageTower(model, image.mean, image.std).eval()


def _fill(tower: nn.Module, path: Path, device: torch.device) -> None:
    """Give a tower its weights; `ValueError` or `SafetensorError` if they do not fit."""
    empty = tensors_of(tower)
    with safe_open(path, "pt") as file:
        if set(file.keys()) != set(empty):
            raise ValueError("other names of weights")
        for name in empty:
            tensor = file.get_tensor(name)
            if tensor.shape != empty[name].shape:
                raise ValueError(f"{name} has another shape")
            if tensor.is_floating_point():
                tensor = tensor.float()
            tensor = tensor.to(device)
            if tensor.dim() == 4:
                # Pixels come with the colours last, which is also how GPUs convolve fastest.
                tensor = tensor.contiguous(memory_format=torch.channels_last)
            _place(tower, name, tensor)


def _place(tower: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = tower.get_submodule(owner)
    if isinstance(getattr(module, leaf), nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    setattr(module, leaf, tensor)
