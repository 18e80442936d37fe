"""Measure the shipped float16 weights: ``python -m demo.train.evaluate --help``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor

from demo.train.catalogue import load_emoji
from demo.train.dataset import make_matcher, matched
from demo.train.model import load_model
from demo.train.sources import TRAINED_STYLES, UNSEEN_STYLE, Icon

QUERIES = (
    "dog",
    "a photo of a dog",
    "red fruit",
    "something to eat with",
    "a happy face",
    "a sad face",
    "flag of Japan",
    "music",
    "sea animal",
    "vehicle that flies",
    "a bird",
    "something sweet to eat",
    "hot drink",
    "ball game",
    "winter",
    "love",
    "tool for repairing things",
    "green vegetable",
    "night sky",
    "a yellow flower",
    "doctor",
    "wild cat with stripes",
)


@dataclass(frozen=True)
class Gallery:
    """One style's drawings on white, one of each emoji."""

    style: str
    names: list[str]
    #: float32 [N, 3, 64, 64], preprocessed as open_clip does.
    pictures: Tensor


def on_white(icon: Icon, side: int = 128, margin: int = 8) -> Image.Image:
    """Render a drawing centred on a white square with a margin of 1/16."""
    art = Image.open(io.BytesIO(icon.png(side - 2 * margin))).convert("RGBA")
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(art, (margin, margin), art)
    return canvas


class Evaluation:
    """The galleries, rendered once, and the measures over them."""

    def __init__(self, cache: Path) -> None:
        emoji = load_emoji(cache)
        matcher = make_matcher(cache, emoji)
        transform = open_clip.image_transform(64, is_train=False)
        self.galleries: list[Gallery] = []
        for style in (*TRAINED_STYLES, UNSEEN_STYLE):
            drawn: dict[str, Icon] = {}
            for icon, key in matched(cache, style, matcher):
                if key is not None:
                    drawn.setdefault(key, icon)
            names = [emoji[key].name for key in drawn]
            pictures = torch.stack([transform(on_white(icon)) for icon in drawn.values()])
            self.galleries.append(Gallery(style.name, names, pictures))

    @staticmethod
    @torch.no_grad()
    def _pictures(model: CLIP, gallery: Gallery) -> Tensor:
        parts = [
            model.encode_image(part, normalize=True) for part in torch.split(gallery.pictures, 256)
        ]
        return torch.cat(parts)

    @staticmethod
    @torch.no_grad()
    def _texts(model: CLIP, texts: list[str]) -> Tensor:
        tokens = open_clip.get_tokenizer("ViT-B-32")(texts)
        return torch.cat([model.encode_text(t, normalize=True) for t in torch.split(tokens, 256)])

    def recall(self, weights: Path) -> Iterator[str]:
        """Yield a line per style: how often an emoji's own picture is among the first k."""
        model = load_model(weights)
        embedded = {g.style: self._pictures(model, g) for g in self.galleries}
        for gallery in self.galleries:
            texts = self._texts(model, gallery.names)
            line = _at(texts @ embedded[gallery.style].T, list(range(len(texts))))
            unseen = " (unseen style)" if gallery.style == UNSEEN_STYLE.name else ""
            yield f"text to picture, {gallery.style}{unseen}: {line}"
        base, other = self.galleries[0], self.galleries[-1]
        shared = [i for i, name in enumerate(other.names) if name in base.names]
        target = [base.names.index(other.names[i]) for i in shared]
        line = _at(embedded[other.style][shared] @ embedded[base.style].T, target)
        yield f"picture to picture, {other.style} to {base.style}: {line}"

    def answers(self, weights: Path, style: str, queries: tuple[str, ...]) -> Iterator[str]:
        """Yield each query with the names of the five nearest pictures of a style."""
        model = load_model(weights)
        gallery = next(g for g in self.galleries if g.style == style)
        scores = self._texts(model, list(queries)) @ self._pictures(model, gallery).T
        for query, row in zip(queries, scores.topk(5).indices, strict=True):
            yield f"{query}: " + ", ".join(gallery.names[i] for i in row.tolist())


def _at(scores: Tensor, target: list[int]) -> str:
    """Summarise float [Q, N] scores against the right column of each row."""
    own = scores[torch.arange(len(target)), target].unsqueeze(1)
    rank = (scores > own).sum(1)
    at = {k: float((rank < k).float().mean()) for k in (1, 5, 10)}
    return ", ".join(f"recall@{k} {v:.3f}" for k, v in at.items()) + f" of {scores.shape[1]}"


def main() -> None:
    """Print the recall of every style and the answers to some free queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="downloads")
    parser.add_argument("--weights", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    evaluation = Evaluation(args.scratch / "npm")
    for line in evaluation.recall(args.weights):
        print(line)
    for style in ("noto", UNSEEN_STYLE.name):
        print(f"\nNearest of {style}:")
        for line in evaluation.answers(args.weights, style, QUERIES):
            print(f"  {line}")


if __name__ == "__main__":
    main()
