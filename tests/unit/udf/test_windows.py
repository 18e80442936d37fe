import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.scheduler import Job
from clickhouse_clip.udf.windows import PictureWindow, TextCache, TextWindow, Vectors


def vector_of(text: bytes) -> list[float]:
    return [float(len(text)), float(sum(text))]


class Encoder:
    """Encodes texts at once, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []

    def start(self, texts: list[bytes]) -> Job:
        self.asked.append(texts)
        job = Job("text", len(texts), 2, small=False)
        vectors = np.array([vector_of(text) for text in texts], np.float32).reshape(-1, 2)
        job.fill(range(len(texts)), vectors)
        return job


def same(vectors: Vectors) -> Vectors:
    return vectors


def texts_through(rows: list[bytes], cache: TextCache, encoder: Encoder) -> Vectors:
    vectors, skipped = TextWindow(rows, cache, encoder.start, same).result()
    assert skipped == {}
    return vectors


def test_each_different_text_is_encoded_once_and_rows_keep_their_order() -> None:
    encoder, rows = Encoder(), [b"b", b"a", b"b", b"ccc", b"a", b""]
    vectors = texts_through(rows, TextCache(0), encoder)
    assert vectors.tolist() == [vector_of(row) for row in rows]
    assert encoder.asked == [[b"b", b"a", b"ccc", b""]]


def test_known_texts_are_not_encoded_again() -> None:
    encoder, cache = Encoder(), TextCache(10)
    texts_through([b"a", b"b"], cache, encoder)
    rows = [b"c", b"b", b"d", b"a", b"b"]
    window = TextWindow(rows, cache, encoder.start, same)
    assert window.hits == 3
    assert window.result()[0].tolist() == [vector_of(row) for row in rows]
    assert encoder.asked == [[b"a", b"b"], [b"c", b"d"]]


def test_only_known_texts() -> None:
    encoder, cache = Encoder(), TextCache(10)
    texts_through([b"a", b"bb"], cache, encoder)
    assert texts_through([b"bb", b"a"], cache, encoder).tolist() == [
        vector_of(b"bb"),
        vector_of(b"a"),
    ]


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    encoder, cache = Encoder(), TextCache(2)
    texts_through([b"a", b"b"], cache, encoder)
    texts_through([b"a"], cache, encoder)
    texts_through([b"c"], cache, encoder)
    assert cache.find([b"a", b"b", b"c"]).keys() == {0, 2}


def test_the_cache_keeps_no_long_texts() -> None:
    cache = TextCache(10)
    texts_through([b"x" * 10_000], cache, Encoder())
    assert cache.find([b"x" * 10_000]) == {}


def picture_window(rows: int) -> tuple[PictureWindow, list[tuple[list[int], list[Any]]]]:
    submitted: list[tuple[list[int], list[Any]]] = []

    def submit(job: Job, positions: list[int], pixels: list[NDArray[np.uint8]]) -> None:
        submitted.append((positions, pixels))
        job.fill(positions, np.array([[each.sum(), 1] for each in pixels], np.float32))

    return PictureWindow(rows, Job("image", rows, 2, small=False), submit, same), submitted


def decoder(value: int) -> NDArray[np.uint8]:
    if value < 0:
        raise PictureError(f"bad {value}")
    return np.full((1, 1, 3), value, np.uint8)


def test_pictures_keep_their_rows_whatever_order_they_are_decoded_in() -> None:
    window, submitted = picture_window(20)
    with ThreadPoolExecutor(4) as pool:
        for row in reversed(range(20)):
            pool.submit(window.decode, row, lambda row=row: decoder(row))
    vectors, skipped = window.result()
    assert vectors[:, 0].tolist() == [3 * row for row in range(20)]
    assert skipped == {}
    assert sorted(positions for positions, _ in submitted) == [[row] for row in range(20)]


def test_a_bad_picture_is_skipped_with_its_reason() -> None:
    window, _ = picture_window(3)
    for row, value in enumerate((1, -5, 3)):
        window.decode(row, lambda value=value: decoder(value))
    vectors, skipped = window.result()
    assert skipped == {1: "bad -5"}
    assert vectors.tolist() == [[3, 1], [0, 0], [9, 1]]


def test_only_bad_pictures_submit_nothing() -> None:
    window, submitted = picture_window(2)
    for row in range(2):
        window.decode(row, lambda: decoder(-1))
    assert window.result()[1].keys() == {0, 1}
    assert submitted == []


def test_a_fault_that_is_not_the_pictures_fails_the_window() -> None:
    window, _ = picture_window(1)
    window.decode(0, lambda: np.zeros(1 // 0, np.uint8))
    assert window.done
    with pytest.raises(ZeroDivisionError):
        window.result()


def test_waiting_ends_when_the_last_row_comes() -> None:
    window, _ = picture_window(1)
    assert not window.done
    threading.Timer(0.05, window.decode, (0, lambda: decoder(2))).start()
    assert window.result()[0][0, 0] == 6
