# ruff: noqa: RUF001, SIM905 - letters that look like others are what these texts are about
from __future__ import annotations

import bisect
import random
from functools import cache

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer

from clickhouse_clip.udf import text as text_module
from clickhouse_clip.udf.text import Tokenizer

CONTEXT = 77
COUNT = 12_000

ODDITIES = [
    *"&amp; &amp;lt; & &; &eacute; &EACUTE; &#28; &#x1F600; &#128512; &nbsp; &no;".split(),
    *"<b> </b> <!-- <start_of_text> <END_OF_TEXT> <end_of_text <ſtart_of_text> </w> a</w>".split(),
    *"é e\u0301 Ã© â€™ schÃ¶n ﬁ ﬂ ß İ ı ſ 'ſ Σ ΑΣ ΟΔΟΣ. ά Ğ ŉ Ｆｕｌｌ ﾊﾛｰ ² ½ Ⅷ ٣ ①".split(),
    *"日本語 한국어 العربية עברית हिन्दी ไทย 😂 😂😂😂 👩\u200d👩\u200d👧 🏳\u200d🌈 🇩🇪 ☃".split(),
    *"12345 3.14 1,000 it's WE'RE 'LL o'clock '''' a_b-c.d e.g. C++ http://x.y/z?a=b&c=d".split(),
    *'#tag @name $5 100% ... !!!! ()[]{} \\ " ` ~ ^ | “ ” ‘ ’ … \x1b[31m'.split(),
    *map(chr, [*range(0x21), 0x7F, 0x80, 0x85, 0x9F, 0xA0, 0xAD, 0x200B, 0x200D, 0x2028, 0x2029]),
    *map(chr, [0x202E, 0x2060, 0x3000, 0xFEFF, 0xFFFC, 0xFFFD, 0xE0067]),
    *("\r\n", "  ", " \n "),
]


@cache
def reference() -> SimpleTokenizer:
    return open_clip.get_tokenizer("ViT-B-32")


@cache
def ours() -> Tokenizer:
    ids = reference().encoder
    merges = [[ids[left], ids[right]] for left, right in reference().bpe_ranks]
    return Tokenizer(np.array(merges), CONTEXT)


def padded(texts: list[bytes]) -> NDArray[np.int64]:
    result = np.zeros((len(texts), CONTEXT), np.int64)
    for row, ids in zip(result, ours().encode(texts), strict=True):
        row[: len(ids)] = ids
    return result


def assert_equal(texts: list[bytes]) -> None:
    expected = reference()([text.decode("utf-8", "replace") for text in texts]).numpy()
    for text, mine, theirs in zip(texts, padded(texts), expected, strict=True):
        assert (mine == theirs).all(), text


def generated() -> list[bytes]:
    source = random.Random(20)
    words = [word.removesuffix("</w>") for word in reference().encoder]
    texts = [b"", b" ", b"\n", b"\0", b"a" * 10_000, b"! " * 500, "é".encode() * 500]
    while len(texts) < COUNT * 3 // 4:
        count = source.choice((1, 2, 3, 5, 8, 13, 40, 120))
        share = source.random()
        parts = [
            source.choice(ODDITIES) if source.random() < share else source.choice(words)
            for _ in range(count)
        ]
        text = source.choice(("", " ", "  ", "\n")).join(parts)
        texts.append(source.choice((text, text.upper(), text.title())).encode())
    while len(texts) < COUNT:
        texts.append(bytes(source.choices(range(256), k=source.randrange(80))))
    return texts


def test_ids_equal_on_thousands_of_generated_texts() -> None:
    texts = generated()
    assert len(texts) >= 10_000
    assert_equal(texts)


@settings(max_examples=1500, deadline=None)
@given(st.text(max_size=120))
def test_ids_equal_on_any_text(text: str) -> None:
    assert_equal([text.encode("utf-8", "replace")])


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(ODDITIES), max_size=30).map("".join))
def test_ids_equal_on_any_mixture_of_oddities(text: str) -> None:
    assert_equal([text.encode()])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=100))
def test_ids_equal_on_any_bytes(data: bytes) -> None:
    assert_equal([data])


def test_every_character_of_the_basic_plane_is_treated_alike() -> None:
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    texts = ["".join(characters[start : start + 8]) for start in range(0, len(characters), 8)]
    assert_equal([text.encode() for text in texts])


@pytest.mark.parametrize(
    "word", ["aab", "ab" * 7, "lol", "ha", "mo", "😂", "é", "!", "-=", "abcdefg"]
)
def test_words_longer_than_the_cut_equal(word: str) -> None:
    text = word * 1200
    assert_equal([text.encode(), b"x" + text.encode(), text.encode() + b"y"])


def test_the_vocabulary_and_its_ids_are_clip_s() -> None:
    tokenizer, ids = ours(), reference().encoder
    assert tokenizer.vocab_size == reference().vocab_size == 49408
    assert tokenizer.start_id == reference().sot_token_id
    assert tokenizer.end_id == reference().eot_token_id
    for byte, character in reference().byte_encoder.items():
        assert text_module._BYTE_IDS[byte] == ids[character]
        assert text_module._BYTE_IDS[byte] + 256 == ids[character + "</w>"]
    for rank, pair in enumerate(reference().bpe_ranks):
        assert text_module.FIRST_MERGE_ID + rank == ids["".join(pair)]


def test_no_merge_depends_on_bytes_beyond_the_margin() -> None:
    """How far to the right of a merge something can lie that keeps it from happening.

    Merge (A, B) of rank r fails if B, or a right half within B before B was complete, is taken
    first by a merge (Y, Z) with what follows: so by one of a rank below that at which Y is used.
    That merge in turn depends on what follows Z. Ranks only fall along such a chain, so one pass
    over the merges by rank finds the longest reach of each.
    """
    ranks = reference().bpe_ranks
    made_by = {left + right: (left, right) for left, right in ranks}

    def length(symbol: str) -> int:
        return len(symbol.removesuffix("</w>")) or len(symbol)

    # By left half: ranks in rising order, and the furthest reach of any merge up to each.
    reaches: dict[str, tuple[list[int], list[int]]] = {}
    furthest = 0
    for (left, right), rank in ranks.items():
        reach, used_at, half = 0, rank, right
        while True:
            known = reaches.get(half)
            if known is not None and (count := bisect.bisect_left(known[0], used_at)):
                reach = max(reach, known[1][count - 1])
            if half not in made_by:
                break
            used_at = ranks[made_by[half]]
            half = made_by[half][1]
        furthest = max(furthest, reach)
        own_ranks, own_reaches = reaches.setdefault(left, ([], []))
        own_ranks.append(rank)
        own_reaches.append(max(length(right) + reach, *own_reaches[-1:], 0))
    longest = max(length(symbol) for symbol in made_by)
    # A token also depends on the merge that would join it with the next one.
    assert furthest + longest == 174
    assert furthest + longest < text_module._MERGE_MARGIN
