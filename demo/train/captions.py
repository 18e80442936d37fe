"""Make up captions for pictures, and say which captions fit which pictures of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from open_clip import get_tokenizer
from open_clip.tokenizer import SimpleTokenizer

from demo.train.catalogue import Emoji

TEMPLATES = (
    "a picture of {}",
    "a picture of a {}",
    "a photo of a {}",
    "a photo of the {}",
    "an image of {}",
    "a drawing of a {}",
    "an icon of a {}",
    "an emoji of a {}",
    "{} emoji",
    "{} icon",
    "a {}",
    "the {}",
    "this is a {}",
    "{} on a plain background",
)
#: Colour words and the hues (degrees) they stand for.
HUES = (
    ("red", 0),
    ("orange", 30),
    ("yellow", 52),
    ("green", 120),
    ("blue", 220),
    ("purple", 285),
    ("pink", 335),
)


def colours(premultiplied: npt.NDArray[np.uint8]) -> list[str]:
    """Name the colours that cover much of a drawing (uint8 [4, H, W], premultiplied RGBA)."""
    alpha = premultiplied[3].astype(np.float32) / 255.0
    inside = alpha > 0.5
    if inside.sum() < 20:
        return []
    rgb = premultiplied[:3, inside].astype(np.float32) / (255.0 * alpha[inside])
    high, low = rgb.max(0), rgb.min(0)
    chroma = high - low
    red, green, blue = rgb
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(
        high == red,
        ((green - blue) / safe) % 6,
        np.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    degrees = hue * 60
    strong = (chroma > 0.3) & (high > 0.35)
    distance = np.stack([np.abs((degrees - at + 180) % 360 - 180) for _, at in HUES])
    nearest = distance.argmin(0)
    share = {name: float((strong & (nearest == i)).mean()) for i, (name, _) in enumerate(HUES)}
    share["black"] = float((high < 0.2).mean())
    share["white"] = float(((chroma < 0.08) & (high > 0.9)).mean())
    share["brown"] = float((strong & (degrees < 45) & (high < 0.65)).mean())
    share["gray"] = float(((chroma < 0.12) & (high >= 0.2) & (high <= 0.9)).mean())
    share["orange"] -= share["brown"]
    return [name for name, part in share.items() if part > 0.4]


class Words:
    """Token ids of captions, word by word, with CLIP's own byte-pair encoding."""

    def __init__(self) -> None:
        tokenizer = get_tokenizer("ViT-B-32")
        assert isinstance(tokenizer, SimpleTokenizer)
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.sot_token_id, tokenizer.eot_token_id
        self.of_word = lru_cache(maxsize=None)(self._of_word)

    def _of_word(self, word: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(word))

    def of_text(self, text: str) -> list[list[int]]:
        """Return the ids of each blank-separated word (CLIP's BPE never crosses blanks)."""
        return [list(self.of_word(word)) for word in text.lower().split()]


#: Token ids, and the facts that the caption states about its picture.
Caption = tuple[list[int], frozenset[int]]


class Captioner:
    """Draws captions at random and knows for which emoji each of them is true."""

    def __init__(self, emoji: list[Emoji], words: Words, colour_of: list[list[str]]) -> None:
        self.emoji = emoji
        self.words = words
        #: Colours of each drawing, by its row in the pixel array.
        self.colour_of = colour_of
        terms: dict[str, int] = {}
        self.facts: list[frozenset[int]] = []
        for item in emoji:
            told = [f"={item.name}", *item.keywords, *item.kinds, *item.name.split()]
            self.facts.append(frozenset(self._id(terms, word) for word in told))
        self.colour_facts = [
            frozenset(self._id(terms, f"#{colour}") for colour in found) for found in colour_of
        ]
        self.terms = terms
        self.known = self._known_tokens()

    @staticmethod
    def _id(terms: dict[str, int], word: str) -> int:
        return terms.setdefault(word, len(terms))

    def _known_tokens(self) -> npt.NDArray[np.bool_]:
        """Return bool [49408]: tokens that some caption may hold."""
        texts: list[str] = [*TEMPLATES, "black", "white", "brown", "gray", ", and with"]
        texts += [name for name, _ in HUES]
        for item in self.emoji:
            texts += [item.name, item.name + ",", *item.keywords, *item.kinds]
            texts += [word + "," for word in item.keywords + item.kinds]
        known = np.zeros(self.words.tokenizer.vocab_size, dtype=np.bool_)
        known[[self.words.start, self.words.end]] = True
        for text in texts:
            for ids in self.words.of_text(text.replace("{}", "")):
                known[ids] = True
        return known

    def named(self, rng: np.random.Generator, label: int, row: int) -> Caption:
        """Draw a caption that names the emoji, now and then followed by some keywords."""
        item = self.emoji[label]
        text = item.name
        pool = item.keywords + item.kinds
        if rng.random() < 0.2 and pool:
            text = ", ".join([text, *self._some(rng, pool)])
        return self._finished(rng, text, {self.terms[f"={item.name}"]}, row)

    def described(self, rng: np.random.Generator, label: int, row: int) -> Caption:
        """Draw a caption of keywords and kinds, without the name where there are any."""
        item = self.emoji[label]
        pool = item.kinds if item.kinds and rng.random() < 0.3 else item.keywords + item.kinds
        if not pool:
            return self.named(rng, label, row)
        picked = self._some(rng, pool)
        text = (", " if rng.random() < 0.4 else " ").join(picked)
        return self._finished(rng, text, {self.terms[word] for word in picked}, row)

    def _finished(self, rng: np.random.Generator, text: str, facts: set[int], row: int) -> Caption:
        """Add a colour word, a template and a stranger, each only now and then."""
        found = self.colour_of[row]
        if found and rng.random() < 0.12:
            colour = str(rng.choice(found))
            facts.add(self.terms[f"#{colour}"])
            text = f"{colour} {text}"
        if rng.random() < 0.35:
            text = str(rng.choice(TEMPLATES)).format(text)
        return self._with_strangers(rng, self.words.of_text(text)), frozenset(facts)

    @staticmethod
    def _some(rng: np.random.Generator, pool: list[str]) -> list[str]:
        number = min(len(pool), int(rng.choice([1, 1, 2, 3])))
        return [pool[i] for i in rng.choice(len(pool), number, replace=False)]

    def _with_strangers(self, rng: np.random.Generator, words: list[list[int]]) -> list[int]:
        """Put in a word never taught now and then: the model must learn to read past it."""
        if rng.random() < 0.1:
            stranger = int(rng.integers(320, self.words.start))
            if not self.known[stranger]:
                words.insert(int(rng.integers(0, len(words) + 1)), [stranger])
        return [token for word in words for token in word][:40]

    def fits(
        self, labels: Iterable[int], rows: Iterable[int], stated: list[frozenset[int]]
    ) -> torch.Tensor:
        """Return bool [B, B]: caption j is true of picture i (its facts are a subset)."""
        true = [self.facts[a] | self.colour_facts[b] for a, b in zip(labels, rows, strict=True)]
        size = (len(stated), len(self.terms))
        pictures, captions = torch.zeros(size), torch.zeros(size)
        for i, (has, says) in enumerate(zip(true, stated, strict=True)):
            pictures[i, list(has)] = 1.0
            captions[i, list(says)] = 1.0
        return pictures @ captions.T >= captions.sum(1) - 0.5
