"""The model bundle: a folder that holds one exported model, and the manifest that describes it.

    manifest.json    this module's subject; written last, so a folder with one is complete
    text.xml/.bin    text tower: int64 token ids (n, length) -> float32 (n, dim)
    image.xml/.bin   image tower: uint8 pixels (n, height, width, 3) -> float32 (n, dim)
    tokenizer.json   CLIP's byte-pair merges

An export for CUDA adds, for open_clip to make the same towers of:

    open_clip.json                           the model's configuration, and probes of its towers
    text.safetensors, image.safetensors      the towers' weights

Standard library only: the installer reads bundles, and loads no model library for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clickhouse_clip.udf.errors import BundleError

FORMAT = 1
MANIFEST = "manifest.json"

#: The files of either tower; a tower is loaded, hashed and missed as a whole.
TOWER_FILES: Mapping[str, tuple[str, ...]] = {
    "text": ("text.xml", "text.bin"),
    "image": ("image.xml", "image.bin"),
}
TOKENIZER = "tokenizer.json"
FILES: tuple[str, ...] = (*TOWER_FILES["text"], *TOWER_FILES["image"], TOKENIZER)

#: What either tower is made of on a GPU; the manifest names all of these files or none.
CONFIGURATION = "open_clip.json"
CUDA_TOWER_FILES: Mapping[str, tuple[str, ...]] = {
    "text": (CONFIGURATION, "text.safetensors"),
    "image": (CONFIGURATION, "image.safetensors"),
}
CUDA_FILES: tuple[str, ...] = (CONFIGURATION, "text.safetensors", "image.safetensors")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MANIFEST_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TextSpec:
    """What the text tower takes.

    context_length: most tokens of a text, with start and end.
    vocab_size: number of token ids.
    causal: whether the tower reads its answer at the end-of-text token and sees nothing after it;
        only then may padding be cut off.
    pad_id: the token id that fills a text up.
    """

    context_length: int
    vocab_size: int
    causal: bool
    pad_id: int


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How a picture is made into the image tower's input.

    height, width: in pixels.
    mean, std: of each of R, G, B in 0..1; the exported tower normalises with them by itself.
    interpolation, resize_mode, fill_color: as in `open_clip.transform.PreprocessCfg`.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"]
    resize_mode: Literal["shortest", "longest", "squash"]
    fill_color: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 (lower-case hex) of one file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle's manifest says.

    weights: open_clip's pretrained tag, or the checkpoint's file name.
    weights_sha256: of the file that the weights came from.
    made_with: versions of the packages that exported it.
    identity: SHA-256 of the manifest's bytes. It covers the hash of every file, so it names the
        model: two bundles with one identity give the same embeddings.
    """

    model: str
    weights: str
    weights_sha256: str
    embedding_dim: int
    text: TextSpec
    image: ImageSpec
    files: Mapping[str, FileEntry]
    made_with: Mapping[str, str]
    identity: str

    @property
    def for_cuda(self) -> bool:
        """Whether the bundle can be served on a GPU, too."""
        return CONFIGURATION in self.files

    def to_json(self) -> bytes:
        """The bytes of the manifest's file; `identity` is their hash and no part of them."""
        values = {
            "format": FORMAT,
            "model": self.model,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "embedding_dim": self.embedding_dim,
            "text": {
                "context_length": self.text.context_length,
                "vocab_size": self.text.vocab_size,
                "causal": self.text.causal,
                "pad_id": self.text.pad_id,
            },
            "image": {
                "size": [self.image.height, self.image.width],
                "mean": self.image.mean,
                "std": self.image.std,
                "interpolation": self.image.interpolation,
                "resize_mode": self.image.resize_mode,
                "fill_color": self.image.fill_color,
            },
            "files": {
                name: {"sha256": entry.sha256, "bytes": entry.bytes}
                for name, entry in self.files.items()
            },
            "made_with": dict(self.made_with),
        }
        return (json.dumps(values, indent=2) + "\n").encode()


def load_manifest(directory: Path) -> Manifest:
    """Read `directory`'s manifest; `BundleError` says what is missing or wrong in it.

    Says nothing about the other files: see `verify`.
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"{directory}: no model bundle (no {MANIFEST}); make one with clip-bundle export"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return parse_manifest(data)
    except BundleError as error:
        raise BundleError(f"{path}: {error}; export the model again") from error


def parse_manifest(data: bytes) -> Manifest:
    """Parse the bytes of a manifest; `BundleError` names the key that is wrong."""
    if len(data) > _MANIFEST_MAX_BYTES:
        raise BundleError(f"is larger than {_MANIFEST_MAX_BYTES} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"is no valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise BundleError("must hold one JSON object")
    if values.get("format") != FORMAT:
        raise BundleError(f"has format {values.get('format')!r}, this version reads {FORMAT}")
    text = _Reader(values).inner("text")
    image = _Reader(values).inner("image")
    reader = _Reader(values)
    height, width = image.items("size", 2, _positive)
    return Manifest(
        model=reader.take("model", _name),
        weights=reader.take("weights", _name),
        weights_sha256=reader.take("weights_sha256", _sha256),
        embedding_dim=reader.take("embedding_dim", _positive),
        text=TextSpec(
            context_length=text.take("context_length", _context_length),
            vocab_size=text.take("vocab_size", _positive),
            causal=text.take("causal", _boolean),
            pad_id=text.take("pad_id", _natural),
        ),
        image=ImageSpec(
            height=height,
            width=width,
            mean=image.items("mean", 3, _number),
            std=image.items("std", 3, _positive_number),
            interpolation=image.take("interpolation", _one_of("bicubic", "bilinear")),
            resize_mode=image.take("resize_mode", _one_of("shortest", "longest", "squash")),
            fill_color=image.take("fill_color", _color),
        ),
        files=_files(reader.inner("files")),
        made_with={name: str(value) for name, value in reader.inner("made_with").values.items()},
        identity=hashlib.sha256(data).hexdigest(),
    )


def verify(directory: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Check size and SHA-256 of a bundle's files, of all of them or of those in `names`.

    `BundleError` names the first file that is missing or that differs.
    """
    for name in manifest.files if names is None else names:
        entry = manifest.files[name]
        path = directory / name
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                # The size first: a file cut short by a full disk need not be read to be refused.
                if size != entry.bytes:
                    raise BundleError(
                        f"{path}: has {size} bytes, the manifest says {entry.bytes};"
                        " copy or export the bundle again"
                    )
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read ({error.strerror}); copy or export the bundle again"
            ) from error
        if digest != entry.sha256:
            raise BundleError(
                f"{path}: its SHA-256 is not the manifest's, so it is damaged or was replaced;"
                " copy or export the bundle again"
            )


def describe_file(path: Path) -> FileEntry:
    """Size and hash of a file, as a manifest holds them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, file.tell())


def _files(reader: _Reader) -> dict[str, FileEntry]:
    # The names are fixed, so that no manifest can point outside of its folder.
    names = (*FILES, *CUDA_FILES) if CONFIGURATION in reader.values else FILES
    if set(reader.values) != set(names):
        raise BundleError(f"files: must be exactly {', '.join(names)}")
    return {
        name: FileEntry(
            reader.inner(name).take("sha256", _sha256), reader.inner(name).take("bytes", _natural)
        )
        for name in names
    }


class _Reader:
    """Takes checked values out of one JSON object; errors name the whole path of a key."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self.values = values
        self._path = path

    def inner(self, name: str) -> _Reader:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise BundleError(f"{self._path}{name}: missing or no JSON object")
        return _Reader(value, f"{self._path}{name}.")

    def take(self, name: str, check: Callable[[Any], bool]) -> Any:
        value = self.values.get(name)
        if not check(value):
            raise BundleError(f"{self._path}{name}: missing or wrong, got {value!r:.100}")
        return value

    def items(self, name: str, count: int, check: Callable[[Any], bool]) -> tuple[Any, ...]:
        return tuple(
            self.take(
                name,
                lambda value: (
                    isinstance(value, list) and len(value) == count and all(map(check, value))
                ),
            )
        )


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _positive(value: Any) -> bool:
    return _natural(value) and value > 0


def _context_length(value: Any) -> bool:
    return _natural(value) and value >= 2  # start and end


def _color(value: Any) -> bool:
    return _natural(value) and value <= 255


def _number(value: Any) -> bool:
    # The bounds refuse NaN and Infinity, which Python's JSON reads.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e6 < value < 1e6


def _positive_number(value: Any) -> bool:
    return _number(value) and value > 0


def _name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()


def _sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _one_of(*known: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in known
