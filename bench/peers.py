"""Peers, called directly in Python at their best batch: open_clip on torch, and ONNX Runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import torch
from PIL import Image

from clickhouse_clip.udf.cpus import usable_cpus

_BATCHES = (8, 32)


def _best(rows: int, run: Callable[[int], None]) -> float:
    """Rows a second at the best batch size; `run` encodes all rows in batches of its argument."""
    best = 0.0
    for batch in _BATCHES:
        started = perf_counter()
        run(batch)
        best = max(best, rows / (perf_counter() - started))
    return best


class OpenClip:
    """open_clip on torch, with its own tokenizer and preprocessing."""

    def __init__(self, checkpoint: Path, *, bf16: bool) -> None:
        torch.set_num_threads(usable_cpus())
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(
            "ViT-B-32", pretrained=str(checkpoint)
        )
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")
        self._precision: Any = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()

    def texts(self, texts: list[str]) -> float:
        """Texts a second."""

        def run(batch: int) -> None:
            with torch.inference_mode(), self._precision:
                for first in range(0, len(texts), batch):
                    self._model.encode_text(self._tokenizer(texts[first : first + batch]))

        return _best(len(texts), run)

    def pictures(self, paths: list[Path]) -> float:
        """Pictures a second, decoding included."""

        def run(batch: int) -> None:
            with torch.inference_mode(), self._precision:
                for first in range(0, len(paths), batch):
                    group = paths[first : first + batch]
                    pixels = [self._preprocess(Image.open(path)) for path in group]
                    self._model.encode_image(torch.stack(pixels))

        return _best(len(paths), run)


class OnnxRuntime:
    """ONNX Runtime on open_clip's towers, float32, at the full context length."""

    def __init__(self, checkpoint: Path) -> None:
        model, _, self._preprocess = open_clip.create_model_and_transforms(
            "ViT-B-32", pretrained=str(checkpoint)
        )
        self._tokenizer = open_clip.get_tokenizer("ViT-B-32")
        self._text = self._session(model, model.encode_text, torch.zeros(2, 77, dtype=torch.int64))
        self._image = self._session(model, model.encode_image, torch.zeros(2, 3, 224, 224))

    def _session(
        self, model: torch.nn.Module, forward: Callable[..., Any], example: torch.Tensor
    ) -> onnxruntime.InferenceSession:
        model.eval()
        model.forward = forward
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tower.onnx"
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = usable_cpus()
            return onnxruntime.InferenceSession(path, options)

    def texts(self, texts: list[str]) -> float:
        """Texts a second."""
        name = self._text.get_inputs()[0].name

        def run(batch: int) -> None:
            for first in range(0, len(texts), batch):
                tokens = self._tokenizer(texts[first : first + batch]).numpy()
                self._text.run(None, {name: tokens})

        return _best(len(texts), run)

    def pictures(self, paths: list[Path]) -> float:
        """Pictures a second, decoding included."""
        name = self._image.get_inputs()[0].name

        def run(batch: int) -> None:
            for first in range(0, len(paths), batch):
                group = paths[first : first + batch]
                pixels = np.stack([self._preprocess(Image.open(path)).numpy() for path in group])
                self._image.run(None, {name: pixels})

        return _best(len(paths), run)
