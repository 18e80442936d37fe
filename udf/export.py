"""Exporting an open_clip model as a bundle: the one place that needs torch and open_clip.

Both towers go through `torch.onnx.export(dynamo=True)`, the only exporter that keeps batch and length
dynamic, and become OpenVINO models. Then they are run and compared with open_clip, and only if
they agree does the bundle appear, whole, under its name.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open_clip
import openvino
import torch
from numpy.typing import NDArray

from clickhouse_clip.udf import __version__
from clickhouse_clip.udf.bundle import (
    FILES,
    MANIFEST,
    TOKENIZER,
    ImageSpec,
    Manifest,
    TextSpec,
    describe_file,
    load_manifest,
)
from clickhouse_clip.udf.engines.openvino import load
from clickhouse_clip.udf.errors import ExportError
from clickhouse_clip.udf.open_clip_models import Source, load_model
