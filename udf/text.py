"""CLIP's tokenizer: texts to token ids, equal to `open_clip.tokenizer.SimpleTokenizer`.

Cleaning, word pattern and merges are OpenAI CLIP's (https://github.com/openai/CLIP,
clip/simple_tokenizer.py, MIT), as copied by open_clip. What differs is the work done: plain ASCII
skips the repair of broken Unicode, which would change nothing in it, words are taken one by one
until the context is full, and a word is merged in n log n steps.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clickhouse_clip.udf.bundle import TOKENIZER, Manifest, TextSpec, verify
from clickhouse_clip.udf.errors import BundleError

#: A text of these bytes alone is not changed by CLIP's cleaning, but for white space and case.
#: In ASCII, ftfy and html.unescape rewrite only entities, control characters, and "\r" to "\n".
_PLAIN = bytes(range(0x20, 0x7F)).replace(b"&", b"") + b"\t\n\r\f"

#: CLIP's pattern of words as it reads on such a text, lower-cased: there \p{L} is a-z, \p{N} 0-9.
_PLAIN_WORD = re.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+"
)
#: The pattern itself, for the `regex` module, which knows \p classes.
_WORD = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

#: Texts up to this many characters are split into words at once, which is faster; of longer ones
#: only as many words are looked for as the context takes.
_SPLIT_WHOLE = 1024

#: A word is cut to its first (context length x longest token + this) bytes before it is merged.
#: What follows a place in a word influences the merges there only through a chain of merges of
#: ever lower rank; no such chain in CLIP's merges reaches further than 174 bytes (the test
#: `test_no_merge_depends_on_bytes_beyond_the_margin` computes it), so the ids kept are the same.
_MERGE_MARGIN = 1024

#: Words whose ids are remembered, and their greatest length: some 10 MB, whatever is asked.
_CACHED_WORDS = 50_000
_CACHED_LENGTH = 32

#: CLIP's order of the 256 bytes: printable Latin-1 first, then the others (`bytes_to_unicode`).
#: A byte's id is its place here, and 256 more where the byte ends a word; merge r makes id 512 + r.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER: tuple[int, ...] = (
    *_PRINTABLE,
    *(byte for byte in range(256) if byte not in _PRINTABLE),
)
_BYTE_IDS = bytes(BYTE_ORDER.index(byte) for byte in range(256))
FIRST_MERGE_ID = 512


class Tokenizer:
    """Turns texts into token ids.

    merges: pairs of token ids in the order that CLIP learnt them, shape (m, 2).
    context_length: most ids of a text, with start and end.

    The vocabulary follows as in CLIP: bytes, bytes at a word's end, merges, start, end. Several
    threads may use one instance.
    """

    def __init__(self, merges: NDArray[np.int64], context_length: int) -> None:
        made = FIRST_MERGE_ID + np.arange(len(merges)).reshape(-1, 1)
        # Parts that exist before their merge are what makes "lowest rank first" one definite
        # order: a merged pair can only join pairs of higher rank.
        if merges.shape != (len(merges), 2) or not ((merges >= 0) & (merges < made)).all():
            raise BundleError("its merges are not in the order of their parts")
        self.start_id = FIRST_MERGE_ID + len(merges)
        self.end_id = self.start_id + 1
        self.vocab_size = self.end_id + 1
        self._limit = context_length - 1
        keys = (merges[:, 0] * self.vocab_size + merges[:, 1]).tolist()
        self._ranks: dict[int, int] = dict(zip(keys, range(len(keys)), strict=True))
        lengths = [1] * FIRST_MERGE_ID
        for left, right in merges.tolist():
            lengths.append(lengths[left] + lengths[right])
        self._longest_word = context_length * max(lengths) + _MERGE_MARGIN
        self._special = {"<start_of_text>": (self.start_id,), "<end_of_text>": (self.end_id,)}
        self._words: dict[str, tuple[int, ...]] = dict(self._special)

    @classmethod
    def load(cls, directory: Path, manifest: Manifest) -> Tokenizer:
        """Load a bundle's tokenizer; `BundleError` if its file is damaged or of another model."""
        verify(directory, manifest, [TOKENIZER])
        path = directory / TOKENIZER
        try:
            values = json.loads(path.read_bytes())
            if values["type"] != "clip-bpe" or values["clean"] != "lower":
                raise BundleError("is no tokenizer that this version knows")
            merges = np.array(values["merges"], np.int64).reshape(-1, 2)
            tokenizer = cls(merges, manifest.text.context_length)
            if tokenizer.vocab_size != manifest.text.vocab_size:
                raise BundleError(
                    f"has {tokenizer.vocab_size} tokens, the model {manifest.text.vocab_size}"
                )
        except (BundleError, ValueError, KeyError, TypeError, OSError) as error:
            raise BundleError(f"{path}: {error}; export the model again") from error
        return tokenizer

    def encode(self, texts: Iterable[bytes]) -> list[NDArray[np.int64]]:
        """Token ids of each text: 1-D, from start to end, not padded, at most `context_length`.

        Bytes that are no UTF-8 are replaced by U+FFFD; a text too long is cut as open_clip cuts it.
        """
        return [np.array(self._encode(text), np.int64) for text in texts]

    def _encode(self, data: bytes) -> list[int]:
        ids = [self.start_id]
        for word in _words(data):
            known = self._words.get(word)
            ids += self._new_word(word) if known is None else known
            if len(ids) > self._limit:
                del ids[self._limit :]
                break
        ids.append(self.end_id)
        return ids

    def _new_word(self, word: str) -> tuple[int, ...]:
        ids = self._merge(word.encode()[: self._longest_word])
        if len(word) <= _CACHED_LENGTH:
            if len(self._words) >= _CACHED_WORDS:
                # A new dict, not clear(): another thread may be between looking up and using.
                self._words = dict(self._special)
            self._words[word] = ids
        return ids

    def _merge(self, word: bytes) -> tuple[int, ...]:
        """Merge a word's bytes, lowest rank first and, within a rank, from the left.

        The ids form a linked list in which a merged right half is marked -1; the heap holds
        (rank, place of the left half), and entries that the list has left behind are skipped.
        """
        ids = list(word.translate(_BYTE_IDS))
        ids[-1] += 256
        count = len(ids)
        following = list(range(1, count + 1))
        preceding = list(range(-1, count - 1))
        ranks, size = self._ranks, self.vocab_size
        heap = [
            (rank, place)
            for place in range(count - 1)
            if (rank := ranks.get(ids[place] * size + ids[place + 1])) is not None
        ]
        heapify(heap)
        while heap:
            rank, left = heappop(heap)
            right = following[left]
            if right == count or ids[left] < 0 or ranks.get(ids[left] * size + ids[right]) != rank:
                continue
            ids[left], ids[right] = FIRST_MERGE_ID + rank, -1
            after, before = following[right], preceding[left]
            following[left] = after
            if after < count:
                preceding[after] = left
                if (joined := ranks.get(ids[left] * size + ids[after])) is not None:
                    heappush(heap, (joined, left))
            if before >= 0 and (joined := ranks.get(ids[before] * size + ids[left])) is not None:
                heappush(heap, (joined, before))
        return tuple(token for token in ids if token >= 0)


def padded_length(count: int, spec: TextSpec, step: int = 1) -> int:
    """Tokens that a text of `count` of them is padded to: the next multiple of `step`.

    Above 16 tokens, of a sixteenth of the next power of two: the lengths are some 30, as each is a
    shape that the engine prepares and keeps, and no text gets longer by more than an eighth. In a
    causal tower tokens after a text's end change nothing. A tower that is not causal always gets
    the full context length.
    """
    if not spec.causal:
        return spec.context_length
    step = max(step, 1 << (count - 1).bit_length() >> 4)
    return min(spec.context_length, -(-count // step) * step)


def batch(tokens: Sequence[NDArray[np.int64]], length: int, spec: TextSpec) -> NDArray[np.int64]:
    """Token ids as one array of shape (n, length), padded; none may be longer."""
    result = np.full((len(tokens), length), spec.pad_id, np.int64)
    for row, ids in zip(result, tokens, strict=True):
        row[: len(ids)] = ids
    return result


def _words(data: bytes) -> Iterable[str]:
    if data.translate(None, _PLAIN):
        return _repaired_words(data.decode("utf-8", "replace"))
    text = data.decode("ascii").lower()
    if len(text) <= _SPLIT_WHOLE:
        return _PLAIN_WORD.findall(text)
    return (match.group() for match in _PLAIN_WORD.finditer(text))


def _repaired_words(text: str) -> Iterator[str]:
    # Line by line, so that a long text costs no more than what the context takes of it. This is
    # exact: ftfy itself goes by lines, no entity and no word spans a line break, and lower-casing
    # looks no further. All that ftfy carries over is that after a "<" entities stay as they are.
    ftfy, word, config = _unicode_tools()
    for line in _lines(text):
        clean = html.unescape(html.unescape(ftfy.fix_text(line, config)))
        for match in word.finditer(" ".join(clean.split()).lower()):
            yield match.group()
        if "<" in line:
            config = config._replace(unescape_html=False)


def _lines(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield text[start:end]
        start = end


@cache
def _unicode_tools() -> tuple[Any, Any, Any]:
    # Imported at the first text that needs them: they cost more than the rest of the tokenizer.
    import ftfy
    import regex

    pattern = regex.compile(_WORD, regex.IGNORECASE)
    return ftfy, pattern, ftfy.TextFixerConfig(explain=False)
