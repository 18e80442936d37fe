"""The settings of one installation: written by the installer, read by workers and service.

A JSON file, so that Ansible and people can read it, and so that the worker needs nothing but the
standard library. A key that is not known is refused: a misspelt limit must not be ignored.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from clickhouse_clip.udf.errors import SettingsError

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Settings:
    """One installation's settings.

    bundle: folder of the model bundle.
    runtime_dir: folder of the socket and the lock; made with mode 0700 by the server's user.
    log_file: where the encoder service writes.
    image_roots: folders that pictures may be read from; the first one resolves relative paths.
    device: `cpu`, `cuda`, one of several GPUs as `cuda:1`; `auto` is the first GPU if one is there
        that can be used, else the processor.
    precision: `auto` is bf16 where the device computes it natively, else fp32 on a processor and
        fp16 on a GPU; `fp16` is for GPUs only.
    threads: of the encoder; 0 follows the processors that this process may use.
    normalize: L2-normalised embeddings (as LAION-400M publishes them), or the model's raw ones.
    max_pixels: largest picture, in pixels, checked before it is decoded.
    max_bytes: largest picture file, in bytes.
    reduced_decoding: large JPEG pictures are decoded at a fraction of their size, as far as that
        leaves twice the pixels that the model takes; the cosine to the exact embedding is 0.9999.
    grace_seconds: how long the service outlives its last worker.
    cache_texts: embeddings of the texts used last that are kept, about 2 KB each; 0 keeps none.
    log_max_bytes: the log is renamed to `.1` when it has grown to this size.
    """

    bundle: Path
    runtime_dir: Path
    log_file: Path
    image_roots: tuple[Path, ...] = field(default=())
    device: str = "auto"
    precision: Precision = "auto"
    threads: int = 0
    normalize: bool = True
    max_pixels: int = 100_000_000
    max_bytes: int = 64 << 20
    reduced_decoding: bool = True
    grace_seconds: float = 60.0
    cache_texts: int = 10_000
    log_max_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        for name in ("bundle", "runtime_dir", "log_file"):
            if not getattr(self, name).is_absolute():
                raise SettingsError(f"{name}: must be an absolute path, got {getattr(self, name)}")
        for root in self.image_roots:
            if not root.is_absolute():
                raise SettingsError(f"image_roots: must be absolute paths, got {root}")
        if not _DEVICE.fullmatch(self.device):
            raise SettingsError(
                f"device: must be auto, cpu, cuda, or cuda:1 and the like, got {self.device}"
            )
        if self.precision not in get_args(Precision):
            raise SettingsError(
                f"precision: must be one of {', '.join(get_args(Precision))}, got {self.precision}"
            )
        for name, least in (
            ("threads", 0),
            ("max_pixels", 1),
            ("max_bytes", 1),
            ("cache_texts", 0),
            ("log_max_bytes", 4096),
        ):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.grace_seconds < 0:
            raise SettingsError(f"grace_seconds: must be at least 0, got {self.grace_seconds}")

    def to_json(self) -> str:
        """The settings as the text of their file."""
        values = asdict(self)
        for name in ("bundle", "runtime_dir", "log_file"):
            values[name] = str(values[name])
        values["image_roots"] = [str(root) for root in self.image_roots]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Settings:
        """Parse the text of a settings file; `SettingsError` names the key that is wrong."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise SettingsError("must hold one JSON object")
        known = {entry.name for entry in fields(cls)}
        for name in values.keys() - known:
            raise SettingsError(f"{name}: no such setting; known are {', '.join(sorted(known))}")
        for name in ("bundle", "runtime_dir", "log_file"):
            values[name] = Path(_checked(values, name, str))
        roots = values.get("image_roots", [])
        if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
            raise SettingsError("image_roots: must be a list of paths")
        values["image_roots"] = tuple(Path(root) for root in roots)
        for name, kind in (
            ("threads", int),
            ("max_pixels", int),
            ("max_bytes", int),
            ("cache_texts", int),
            ("log_max_bytes", int),
            ("normalize", bool),
            ("reduced_decoding", bool),
            ("device", str),
            ("precision", str),
            ("grace_seconds", (int, float)),
        ):
            if name in values:
                _checked(values, name, kind)
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read a settings file; `SettingsError` names the file and what is wrong in it."""
        try:
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise SettingsError(
                f"{path}: cannot be read ({error.strerror}); run install-udfs again"
            ) from error
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from error


def _checked(values: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    value = values.get(name)
    # bool is an int to Python, and no number to a reader of the file.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise SettingsError(f"{name}: missing or of the wrong type, got {value!r}")
    return value
