"""Build and load the training arrays: every drawing once, as a small RGBA picture."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from demo.train.catalogue import Emoji, Matcher, load_emoji
from demo.train.sources import TRAINED_STYLES, UNSEEN_STYLE, Icon, Style, icons

#: Side of the stored pictures; the model sees 64 px, augmentation needs a little more.
STORED_SIDE = 80


@dataclass
class Drawings:
    """The drawings of the trained styles, one row each."""

    #: uint8 [N, 4, 80, 80], RGBA with premultiplied colour.
    pixels: npt.NDArray[np.uint8]
    #: int64 [N], index into ``emoji``.
    labels: npt.NDArray[np.int64]
    #: int64 [N], index into TRAINED_STYLES.
    styles: npt.NDArray[np.int64]
    emoji: list[Emoji]


def to_premultiplied(png: bytes) -> npt.NDArray[np.uint8]:
    """Decode a PNG to uint8 [4, H, W] with colour multiplied by alpha (safe to resample)."""
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32)
    rgba = np.concatenate([rgba[..., :3] * (rgba[..., 3:] / 255.0), rgba[..., 3:]], axis=2)
    return (rgba + 0.5).astype(np.uint8).transpose(2, 0, 1)


def matched(cache: Path, style: Style, matcher: Matcher) -> list[tuple[Icon, str | None]]:
    """Pair each drawing of a style with its emoji's hexcode (None: not in Unicode's list)."""
    return [(icon, matcher.match(icon)) for icon in icons(cache, style)]


def make_matcher(cache: Path, emoji: dict[str, Emoji]) -> Matcher:
    """Return a matcher that knows the names used by the packages that give code points."""
    matcher = Matcher(emoji)
    for style in (*TRAINED_STYLES, UNSEEN_STYLE):
        matcher.learn(list(icons(cache, style)))
    return matcher


def build(cache: Path, target: Path) -> None:
    """Download, render and store everything that training reads (about a minute)."""
    known = load_emoji(cache)
    matcher = make_matcher(cache, known)
    classes: dict[str, Emoji] = {}
    rows: list[tuple[npt.NDArray[np.uint8], str, int]] = []
    count: Counter[str] = Counter()
    for number, style in enumerate(TRAINED_STYLES):
        for icon, key in matched(cache, style, matcher):
            item = known.get(key) if key else None
            if item is None and style.own_names:
                item = matcher.own_class(icon)
            if item is None:
                continue
            classes[item.key] = item
            rows.append((to_premultiplied(icon.png(STORED_SIDE)), item.key, number))
            count[style.name] += 1
    order = {key: index for index, key in enumerate(sorted(classes))}
    target.mkdir(parents=True, exist_ok=True)
    np.save(target / "pixels.npy", np.stack([row[0] for row in rows]))
    np.save(target / "labels.npy", np.array([order[row[1]] for row in rows], dtype=np.int64))
    np.save(target / "styles.npy", np.array([row[2] for row in rows], dtype=np.int64))
    listing = [asdict(classes[key]) for key in order]
    (target / "emoji.json").write_text(json.dumps(listing, ensure_ascii=False, indent=1), "utf-8")
    print(f"{len(order)} classes, {len(rows)} drawings: {dict(count)}")


def load(target: Path) -> Drawings:
    """Read back what :func:`build` stored."""
    listing = json.loads((target / "emoji.json").read_text("utf-8"))
    return Drawings(
        pixels=np.load(target / "pixels.npy"),
        labels=np.load(target / "labels.npy"),
        styles=np.load(target / "styles.npy"),
        emoji=[Emoji(**row) for row in listing],
    )
