"""Download the pinned npm packages that hold the pictures and the words (see SOURCES.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py

#: Words: emojibase has names, tags (Unicode CLDR) and subgroups; emojilib has more keywords.
WORD_PACKAGES = ("emojibase-data@17.0.0", "emojilib@4.0.3")


@dataclass(frozen=True)
class Style:
    """One artist's drawings of the emoji, as an Iconify npm package."""

    name: str
    package: str
    #: How often this style is drawn in training, relative to the others; 0 = never trained on.
    weight: float
    #: Drawings of things outside Unicode's list are kept as classes of their own.
    own_names: bool = False


TRAINED_STYLES = (
    Style("noto", "@iconify-json/noto@1.2.9", 1.0),
    Style("noto-v1", "@iconify-json/noto-v1@1.2.5", 1.0),
    Style("twemoji", "@iconify-json/twemoji@1.2.5", 1.0),
    Style("emojitwo", "@iconify-json/emojione@1.2.3", 1.0),
    Style("fxemoji", "@iconify-json/fxemoji@1.2.2", 1.0),
    Style("streamline", "@iconify-json/streamline-emojis@1.2.4", 1.0, own_names=True),
    Style("emojitwo-mono", "@iconify-json/emojione-monotone@1.2.1", 0.5),
)
#: Never trained on: it measures how the model does on an artist it has not seen.
UNSEEN_STYLE = Style("fluent-flat", "@iconify-json/fluent-emoji-flat@1.2.6", 0.0)


def folder_of(cache: Path, package: str) -> Path:
    """Return the folder under ``cache`` that holds the unpacked ``name@version``."""
    return cache / package.lstrip("@").replace("/", "-").replace("@", "-")


def download(cache: Path, package: str) -> Path:
    """Fetch ``name@version`` with npm (which checks its integrity) unless it is there already."""
    folder = folder_of(cache, package)
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--json", "--pack-destination", str(cache), package]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    archive = cache / answer[0]["filename"].replace("@", "").replace("/", "-")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / "package").rename(folder)
    shutil.rmtree(partial)
    return folder


@dataclass(frozen=True)
class Icon:
    """One drawing: its name in the package, its code points where given, and how to draw it."""

    name: str
    hexcode: str | None
    body: str
    width: float
    height: float

    def png(self, size: int) -> bytes:
        """Render it to a ``size`` x ``size`` PNG with a transparent background."""
        side = max(self.width, self.height)
        x, y = (self.width - side) / 2, (self.height - side) / 2
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{x} {y} {side} {side}" width="{size}" height="{size}">{self.body}</svg>'
        )
        return bytes(resvg_py.svg_to_bytes(svg, width=size, height=size, skip_system_fonts=True))


def icons(cache: Path, style: Style) -> Iterator[Icon]:
    """Yield the drawings of a style, downloading its package first if needed."""
    folder = download(cache, style.package)
    pack: dict[str, Any] = json.loads((folder / "icons.json").read_text("utf-8"))
    chars = folder / "chars.json"
    codes: dict[str, str] = {}
    if chars.exists():
        codes = {name: code for code, name in json.loads(chars.read_text("utf-8")).items()}
    for name, icon in pack["icons"].items():
        if icon.get("hidden"):
            continue
        yield Icon(
            name=name,
            hexcode=codes.get(name),
            body=icon["body"],
            width=icon.get("width", pack.get("width", 16)),
            height=icon.get("height", pack.get("height", 16)),
        )
