# ruff: noqa: RUF001 - letters that look like others are what these texts are about
from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickhouse_clip.udf import text as text_module
from clickhouse_clip.udf.bundle import TextSpec, describe_file, load_manifest
from clickhouse_clip.udf.errors import BundleError
from clickhouse_clip.udf.text import BYTE_ORDER, FIRST_MERGE_ID, Tokenizer, batch, padded_length
from tests.toy import make_bundle

CONTEXT = 77


def byte_id(character: str) -> int:
    return BYTE_ORDER.index(ord(character))


def learn_merges(corpus: str, count: int) -> list[tuple[int, int]]:
    """Byte-pair merges as CLIP's were learnt, from some words."""
    words = [[*map(byte_id, word[:-1]), byte_id(word[-1]) + 256] for word in corpus.split()]
    merges: list[tuple[int, int]] = []
    while len(merges) < count:
        counts: dict[tuple[int, int], int] = {}
        for word in words:
            for pair in pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = [merge_pass(word, best, FIRST_MERGE_ID + len(merges) - 1) for word in words]
    return merges


def merge_pass(word: list[int], pair: tuple[int, int], made: int) -> list[int]:
    """Merge a pair everywhere in a word, from the left, as one round of CLIP's `bpe` does."""
    result: list[int] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            result.append(made)
            place += 2
        else:
            result.append(word[place])
            place += 1
    return result


def merge_by_passes(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
    ids = [BYTE_ORDER.index(byte) for byte in word]
    ids[-1] += 256
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while len(ids) > 1:
        pair = min(pairwise(ids), key=lambda pair: ranks.get(pair, len(merges)))
        if pair not in ranks:
            break
        ids = merge_pass(ids, pair, FIRST_MERGE_ID + ranks[pair])
    return ids


def sample_corpus() -> str:
    source = random.Random(3)
    return " ".join(
        "".join(source.choice("aabbcd") for _ in range(source.randint(1, 12))) for _ in range(400)
    )


MERGES = learn_merges(sample_corpus(), 120)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(np.array(MERGES), CONTEXT)


def ids_of(tokenizer: Tokenizer, text: bytes) -> list[int]:
    (ids,) = tokenizer.encode([text])
    assert ids.dtype == np.int64
    assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
    return list(map(int, ids[1:-1]))


def test_the_byte_order_is_a_permutation_that_starts_with_printable_ascii() -> None:
    assert sorted(BYTE_ORDER) == list(range(256))
    assert bytes(BYTE_ORDER[:94]) == bytes(range(0x21, 0x7F))


@settings(max_examples=300, deadline=None)
@given(st.text("abcd", min_size=1, max_size=60))
def test_merging_by_heap_equals_merging_by_passes(word: str) -> None:
    tokenizer = Tokenizer(np.array(MERGES), 1000)
    assert ids_of(tokenizer, word.encode()) == merge_by_passes(word.encode(), MERGES)


PLAIN = st.text(
    st.characters(max_codepoint=0x7E, exclude_characters="&").filter(
        lambda character: character >= " " or character in "\t\n\r\f"
    ),
    max_size=60,
)


@settings(max_examples=500, deadline=None)
@given(PLAIN)
def test_skipping_the_repair_of_plain_text_changes_no_word(text: str) -> None:
    assert not text.encode().translate(None, text_module._PLAIN)
    assert list(text_module._words(text.encode())) == list(text_module._repaired_words(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\r\n\f ", []),
        (
            "A photo  of\na dog's 12 cats!!",
            ["a", "photo", "of", "a", "dog", "'s", "1", "2", "cats", "!!"],
        ),
        ("<START_OF_TEXT>x<end_of_text>", ["<start_of_text>", "x", "<end_of_text>"]),
        ("it'll WE'RE", ["it", "'ll", "we", "'re"]),
        ("caf&eacute; &amp;amp; tea", ["café", "&", "tea"]),
        ("schÃ¶n", ["schön"]),
        ("a\x00b\x1cc\x7fd", ["abcd"]),
        ("“quoted”", ['"', "quoted", '"']),
        ("ﬁsh ＦＵＬＬ", ["fish", "full"]),
        ("犬の写真 😂", ["犬の写真", "😂"]),
        ("ΟΔΟΣ\nΣ", ["οδος", "σ"]),
        ("&lt;b&gt;\n<i>\n&EACUTE;\né", ["<", "b", ">", "<", "i", ">", "&", "eacute", ";", "é"]),
    ],
)
def test_texts_are_cleaned_and_split_as_clip_does(text: str, words: list[str]) -> None:
    assert list(text_module._words(text.encode())) == words


def test_what_is_no_utf8_is_replaced(tokenizer: Tokenizer) -> None:
    assert list(text_module._words(b"a\xff\xfeb \xe2\x82")) == ["a", "��", "b", "�"]
    assert ids_of(tokenizer, b"\xed\xa0\x80")  # a surrogate on its own


def test_special_tokens_in_a_text_are_those_tokens(tokenizer: Tokenizer) -> None:
    assert ids_of(tokenizer, b"<end_of_text><START_OF_TEXT>") == [
        tokenizer.end_id,
        tokenizer.start_id,
    ]


@pytest.mark.parametrize("count", [74, 75, 76, 200])
def test_a_long_text_is_cut_and_still_ends(tokenizer: Tokenizer, count: int) -> None:
    ids = ids_of(tokenizer, b"! " * count)
    assert ids == [byte_id("!") + 256] * min(count, CONTEXT - 2)


def test_a_word_of_many_tokens_is_cut_within(tokenizer: Tokenizer) -> None:
    assert ids_of(tokenizer, b"xy " + b"!" * 1000) == [
        byte_id("x"),
        byte_id("y") + 256,
        *[byte_id("!")] * 73,
    ]


def test_texts_without_end_take_no_time_and_no_memory(tokenizer: Tokenizer) -> None:
    for text in (b"a" * 5_000_000, b"ab cd " * 1_000_000, "é a\n".encode() * 1_000_000):
        assert len(ids_of(tokenizer, text)) == CONTEXT - 2


def test_remembered_words_are_bounded(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_module, "_CACHED_WORDS", 10)
    texts = [b"abc%s" % bytes([97 + number % 26, 97 + number // 26]) for number in range(200)]
    first = tokenizer.encode(texts)
    assert len(tokenizer._words) <= 10
    second = tokenizer.encode(texts)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    tokenizer.encode([b"a" * 1000])
    assert max(map(len, tokenizer._words)) < 100


@pytest.mark.parametrize("merges", [[[512, 0]], [[0, 513]], [[-1, 0]], [[0, 1, 2]]])
def test_merges_in_an_impossible_order_are_refused(merges: list[list[int]]) -> None:
    with pytest.raises(BundleError, match="order of their parts"):
        Tokenizer(np.array(merges), CONTEXT)


def with_tokenizer(bundle: Path, content: str) -> Path:
    """Put another tokenizer into a bundle, with the hash that makes the manifest agree."""
    (bundle / "tokenizer.json").write_text(content)
    values = json.loads((bundle / "manifest.json").read_bytes())
    entry = describe_file(bundle / "tokenizer.json")
    values["files"]["tokenizer.json"] = {"sha256": entry.sha256, "bytes": entry.bytes}
    (bundle / "manifest.json").write_text(json.dumps(values))
    return bundle


def test_a_bundle_s_tokenizer_is_loaded(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    tokenizer = Tokenizer.load(bundle, load_manifest(bundle))
    assert ids_of(tokenizer, b"A b") == [byte_id("a") + 256, byte_id("b") + 256]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "export the model again"),
        ('{"type": "clip-bpe", "clean": "lower"}', "merges"),
        ('{"type": "sentencepiece", "clean": "lower", "merges": []}', "no tokenizer that this"),
        ('{"type": "clip-bpe", "clean": "lower", "merges": [1]}', "reshape"),
        ('{"type": "clip-bpe", "clean": "lower", "merges": ["a", "b"]}', "invalid literal"),
        ('{"type": "clip-bpe", "clean": "lower", "merges": [0, 256]}', "has 515 tokens"),
    ],
)
def test_a_wrong_tokenizer_file_is_an_error_of_the_bundle(
    tmp_path: Path, content: str, reason: str
) -> None:
    bundle = with_tokenizer(make_bundle(tmp_path / "bundle"), content)
    with pytest.raises(BundleError, match=f"tokenizer.json: .*{reason}"):
        Tokenizer.load(bundle, load_manifest(bundle))


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    manifest = load_manifest(bundle)
    (bundle / "tokenizer.json").write_text(" " * manifest.files["tokenizer.json"].bytes)
    with pytest.raises(BundleError, match="SHA-256"):
        Tokenizer.load(bundle, manifest)


def ids(*lengths: int) -> list[NDArray[np.int64]]:
    return [np.arange(1, length + 1) for length in lengths]


@pytest.mark.parametrize(
    ("count", "step", "expected"),
    [
        *[(2, 1, 2), (7, 1, 7), (16, 1, 16), (17, 1, 18), (32, 1, 32), (33, 1, 36), (66, 1, 72)],
        *[(7, 2, 8), (2, 8, 8), (8, 8, 8), (9, 8, 16), (73, 8, 77), (77, 8, 77)],
    ],
)
def test_a_text_is_padded_to_the_next_multiple(count: int, step: int, expected: int) -> None:
    assert padded_length(count, TextSpec(CONTEXT, 49408, causal=True, pad_id=0), step) == expected


def test_few_lengths_and_little_padding() -> None:
    spec = TextSpec(CONTEXT, 49408, causal=True, pad_id=0)
    lengths = {count: padded_length(count, spec) for count in range(2, CONTEXT + 1)}
    assert len(set(lengths.values())) <= 35
    assert all(count <= length <= 1.13 * count for count, length in lengths.items())


def test_a_tower_that_is_not_causal_gets_the_whole_context() -> None:
    assert padded_length(3, TextSpec(CONTEXT, 49408, causal=False, pad_id=0)) == CONTEXT


@pytest.mark.parametrize("lengths", [[], [2], [3, 9, 5]])
def test_a_batch_is_padded_behind_its_texts(lengths: list[int]) -> None:
    array = batch(ids(*lengths), 9, TextSpec(CONTEXT, 49408, causal=True, pad_id=9))
    assert array.shape == (len(lengths), 9)
    assert array.dtype == np.int64
    for row, length in zip(array, lengths, strict=True):
        assert (row[:length] == np.arange(1, length + 1)).all()
        assert (row[length:] == 9).all()
