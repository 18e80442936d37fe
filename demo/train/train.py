"""Train the demo model: ``python -m demo.train.train --help``."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.nn import functional

from demo.train.augment import augment
from demo.train.captions import Captioner, Words, colours
from demo.train.dataset import Drawings, build, load
from demo.train.evaluate import Evaluation
from demo.train.model import CONFIG, encode_text, new_model, padded, save_half, write_config
from demo.train.recipe import Recipe, batches, learning_rate, may_mirror


class FittingClipLoss(ClipLoss):  # type: ignore[misc]
    """CLIP's loss where a caption may be true of several pictures of the batch.

    A caption should find all of them alike; a picture should find its own caption, and the others
    that are true of it do not count as wrong.
    """

    def forward(self, pictures: Tensor, texts: Tensor, scale: Tensor, fits: Tensor) -> Tensor:
        """Return the loss of float [B, E] pairs; ``fits``: bool [B, B], caption j suits i."""
        to_text, to_picture = self.get_logits(pictures, texts, scale)
        others = fits & ~torch.eye(len(fits), dtype=torch.bool)
        labels = self.get_ground_truth(to_text.device, len(to_text))
        own = functional.cross_entropy(to_text.masked_fill(others, float("-inf")), labels)
        wanted = fits.T.float()
        found = functional.cross_entropy(to_picture, wanted / wanted.sum(1, keepdim=True))
        return (own + found) / 2


@dataclass(frozen=True)
class Batch:
    """What one step is trained on."""

    #: float32 [B, 3, 64, 64], normalised.
    pictures: Tensor
    #: int64 [2 B, L], a caption with the name for each picture, then one without.
    tokens: Tensor
    #: bool [B, B] for either, caption j is true of picture i.
    fits: list[Tensor]


class Trainer:
    """The model, its running average, and one step of training."""

    def __init__(self, recipe: Recipe, drawings: Drawings, weights: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.drawings = recipe, drawings
        self.words = Words()
        found = [colours(picture) for picture in drawings.pixels]
        self.captioner = Captioner(drawings.emoji, self.words, found)
        self.known = torch.from_numpy(self.captioner.known)
        self.mirror = may_mirror(drawings)
        self.loss = FittingClipLoss()
        write_config(weights)
        self.model = new_model(weights)
        self.model.visual.to(memory_format=torch.channels_last)
        with torch.no_grad():  # tokens that no caption teaches stay at zero
            self.model.token_embedding.weight.mul_(self.known.unsqueeze(1))
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": recipe.decay},
            {"params": rest, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.rate, betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = 0
        self.longest = 0

    def prepare(self, step: int, rows: npt.NDArray[np.int64]) -> Batch:
        """Draw the captions and pictures of a step; depends on nothing but seed and step."""
        rng = np.random.default_rng([self.recipe.seed, 2, step])
        gen = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        labels = self.drawings.labels[rows]
        pairs = list(zip(labels.tolist(), rows.tolist(), strict=True))
        texts: list[list[int]] = []
        fits = []
        for kind in (self.captioner.named, self.captioner.described):
            captions, facts = zip(*(kind(rng, *pair) for pair in pairs), strict=True)
            texts += captions
            fits.append(self.captioner.fits(labels.tolist(), rows.tolist(), list(facts)))
        tokens = padded(texts, self.words.start, self.words.end)
        pixels = torch.from_numpy(self.drawings.pixels[rows])
        pictures = augment(pixels, torch.from_numpy(self.mirror[labels]), 64, gen)
        return Batch(pictures.contiguous(memory_format=torch.channels_last), tokens, fits)

    def read(self, tokens: Tensor) -> Tensor:
        """Encode int64 [T, L] to [T, E], short captions apart from long ones to save padding."""
        ends = tokens.argmax(dim=1)
        order = ends.argsort()
        parts = [
            encode_text(self.model, tokens[part, : int(ends[part].max()) + 1])
            for part in order.chunk(4)
        ]
        return torch.cat(parts)[order.argsort()]

    def spare_strangers(self, tokens: Tensor) -> None:
        """Drop the gradient of tokens that no caption teaches: their rows stay at zero."""
        gradient = self.model.token_embedding.weight.grad
        assert gradient is not None
        gradient[tokens[~self.known[tokens]]] = 0.0

    def update(self, batch: Batch) -> float:
        """Do one step of gradient descent and return its loss."""
        recipe, model, tokens = self.recipe, self.model, batch.tokens
        self.longest = max(self.longest, tokens.shape[1])
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.encode_image(batch.pictures)
            read = self.read(tokens)
        seen, read = (
            functional.normalize(seen.float(), dim=1),
            functional.normalize(read.float(), dim=1),
        )
        scale = model.logit_scale.exp()
        losses = [
            self.loss(seen, texts, scale, fits)
            for texts, fits in zip(read.chunk(len(batch.fits)), batch.fits, strict=True)
        ]
        loss = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.spare_strangers(tokens)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(100.0))
            keep = min(recipe.average, (1 + self.step) / (10 + self.step))
            now = model.state_dict()
            moving = [key for key, value in now.items() if value.is_floating_point()]
            torch._foreach_lerp_(
                [self.average[key] for key in moving], [now[key] for key in moving], 1 - keep
            )
        self.step += 1
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Return all that :meth:`restore` needs to go on as if never stopped."""
        return {
            "recipe": asdict(self.recipe),
            "config": CONFIG,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "longest": self.longest,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        self.longest = state["longest"]


def prefetched(trainer: Trainer) -> Iterator[Batch]:
    """Prepare each batch on a thread of its own while the one before it is trained on."""
    rows = batches(trainer.drawings, trainer.recipe, trainer.step)
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Batch] | None = None
        for step, chosen in enumerate(rows, start=trainer.step):
            ready, ahead = ahead, pool.submit(trainer.prepare, step, chosen)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def main() -> None:
    """Build the arrays if need be, train, write checkpoints and the float16 weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="downloads and checkpoints")
    parser.add_argument("--weights", type=Path, required=True, help="where the result goes")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--evaluate-every", type=int, default=150)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.scratch / "data" / "emoji.json").exists():
        build(args.scratch / "npm", args.scratch / "data")
    recipe = Recipe(steps=args.steps)
    trainer = Trainer(recipe, load(args.scratch / "data"), args.weights)
    checkpoint = args.scratch / "checkpoint.pt"
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
    evaluation = Evaluation(args.scratch / "npm")
    began, total = time.monotonic(), 0.0
    for count, batch in enumerate(prefetched(trainer), start=1):
        total += trainer.update(batch)
        if trainer.step % 25 == 0:
            pace = (time.monotonic() - began) / count
            print(f"step {trainer.step}/{recipe.steps} loss {total / 25:.3f} {pace:.2f} s/step",
                  flush=True)  # fmt: skip
            total = 0.0
        if trainer.step % args.evaluate_every == 0 or trainer.step == recipe.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(trainer.state(), partial)
            partial.replace(checkpoint)
            save_half(trainer.average, args.weights, trainer.longest)
            for line in evaluation.recall(args.weights):
                print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
