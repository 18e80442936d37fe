"""What the benchmarks encode: texts of known lengths and pictures, from a fixed seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

#: What is measured: texts of 3 to 8 tokens, texts of lengths like LAION's captions, JPEG files.
KINDS = ("short_texts", "captions", "pictures")

_PICTURE_SIDE = 256


def words() -> list[str]:
    """Plain words that CLIP's tokenizer takes as one token each."""
    vocabulary = SimpleTokenizer().encoder
    ends = (word.removesuffix("</w>") for word in vocabulary if word.endswith("</w>"))
    return sorted(word for word in ends if len(word) > 2 and word.isascii() and word.isalpha())


def short_texts(count: int, seed: int) -> list[str]:
    """Different texts of 1 to 6 words: 3 to 8 tokens with start and end."""
    return _texts(np.random.default_rng(seed).integers(1, 7, 2 * count), count, seed)


def captions(count: int, seed: int) -> list[str]:
    """Different texts as long as LAION's captions: about 16 tokens in the mean, up to 77."""
    lengths = np.random.default_rng(seed).lognormal(2.45, 0.6, 2 * count)
    return _texts(np.clip(lengths, 2, 75).astype(int), count, seed)


def _texts(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], count: int, seed: int) -> list[str]:
    random = np.random.default_rng([seed, 1])
    known = words()
    texts: dict[str, None] = {}
    for length in lengths:
        texts[" ".join(known[place] for place in random.integers(0, len(known), length))] = None
        if len(texts) == count:
            break
    return list(texts)


def make_pictures(folder: Path, count: int) -> None:
    """Write `count` JPEG files named 0.jpg and so on, their shorter side 256 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number}.jpg"
        if path.exists():
            continue
        long = int(_PICTURE_SIDE * random.uniform(1, 1.6))
        coarse = Image.fromarray(random.integers(0, 256, (24, 36, 3), np.uint8))
        smooth = coarse.resize((long, _PICTURE_SIDE), Image.Resampling.BICUBIC)
        grain = random.normal(0, 8, (_PICTURE_SIDE, long, 3))
        pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=88)
