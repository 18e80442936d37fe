"""Second stage: train the text tower on against all pictures at once, the image tower fixed.

With the pictures' embeddings computed once a step costs little, and a caption is compared with
every drawing instead of one batch of them. Run ``python -m demo.train.refine --help``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo.train.augment import augment
from demo.train.dataset import load
from demo.train.evaluate import Evaluation
from demo.train.model import padded, save_half
from demo.train.recipe import Recipe
from demo.train.train import Trainer

#: How often each drawing is embedded, differently placed and tinted each time.
COPIES = 4
CAPTIONS = 384
RATE = 1e-3


@torch.no_grad()
def embed(trainer: Trainer, seed: int) -> Tensor:
    """Return float [COPIES, N, E]: unit embeddings of augmented copies of every drawing."""
    gen = torch.Generator().manual_seed(seed)
    drawings = trainer.drawings
    mirror = torch.from_numpy(trainer.mirror[drawings.labels])
    copies = []
    for _ in range(COPIES):
        parts = [
            trainer.model.encode_image(augment(pixels, flip, 64, gen), normalize=True)
            for pixels, flip in zip(
                torch.split(torch.from_numpy(drawings.pixels), 256),
                torch.split(mirror, 256),
                strict=True,
            )
        ]
        copies.append(torch.cat(parts))
    return torch.stack(copies)


def truths(trainer: Trainer) -> Tensor:
    """Return bool [facts, N]: the fact is true of the drawing."""
    captioner = trainer.captioner
    table = torch.zeros(len(captioner.terms), len(trainer.drawings.labels), dtype=torch.bool)
    for row, label in enumerate(trainer.drawings.labels.tolist()):
        table[list(captioner.facts[label] | captioner.colour_facts[row]), row] = True
    return table


def refine(trainer: Trainer, steps: int, seed: int) -> None:
    """Train the text tower in place for ``steps`` steps."""
    model = trainer.model.eval()
    pictures, table = embed(trainer, seed), truths(trainer)
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    rng = np.random.default_rng([seed, 3])
    labels = trainer.drawings.labels
    total = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps))
            group["lr"] /= 2
        rows = rng.choice(len(labels), CAPTIONS, replace=False)
        pairs = list(zip(labels[rows].tolist(), rows.tolist(), strict=True))
        drawn = [trainer.captioner.named(rng, *pair) for pair in pairs]
        drawn += [trainer.captioner.described(rng, *pair) for pair in pairs]
        tokens = padded([tokens for tokens, _ in drawn], trainer.words.start, trainer.words.end)
        wanted = torch.stack([table[list(facts)].all(0) for _, facts in drawn]).float()
        texts = functional.normalize(trainer.read(tokens), dim=1)
        logits = model.logit_scale.exp() * texts @ pictures[step % COPIES].T
        loss = functional.cross_entropy(logits, wanted / wanted.sum(1, keepdim=True))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        trainer.spare_strangers(tokens)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps} loss {total / 100:.3f}", flush=True)
            total = 0.0


def main() -> None:
    """Refine the averaged weights of a checkpoint and write them as float16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="downloads and checkpoint")
    parser.add_argument("--weights", type=Path, required=True, help="where the result goes")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = Recipe()
    trainer = Trainer(recipe, load(args.scratch / "data"), args.weights)
    trainer.restore(torch.load(args.scratch / "checkpoint.pt", weights_only=True))
    trainer.model.load_state_dict(trainer.average)
    refine(trainer, args.steps, recipe.seed)
    save_half(trainer.model.state_dict(), args.weights, trainer.longest)
    for line in Evaluation(args.scratch / "npm").recall(args.weights):
        print(line, flush=True)


if __name__ == "__main__":
    main()
