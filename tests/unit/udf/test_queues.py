from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf.jobs import Job, TowerName
from clickhouse_clip.udf.queues import Batching, Item, Queue


def make(name: TowerName) -> Queue:
    def collate(values: Any, length: int) -> NDArray[Any]:
        return np.stack([np.pad(value, (0, length - len(value))) for value in values])

    if name == "image":
        return Queue(name, Batching(lambda *_: 0, lambda pixels, _: np.stack(pixels)))
    return Queue(name, Batching(lambda tokens, small: len(tokens) + 100 * small, collate))


def add(queue: Queue, lengths: list[int], turn: int = 1, small: bool = False) -> None:
    job = Job("text", len(lengths), 2, small=small)
    for row, length in enumerate(lengths):
        queue.add(job, row, np.ones(length, np.int64), turn)


def batches(queue: Queue) -> list[list[Item]]:
    found = []
    while queue.oldest(small=False) is not None:
        found.append(queue.take(small=False))
    return found


def lengths(items: list[Item]) -> list[int]:
    return [item.length for item in items]


def test_batches_are_bounded_and_of_one_length_until_it_runs_out() -> None:
    queue = make("text")
    add(queue, [5, 70, 6] * 100)
    found = batches(queue)
    sizes = [queue.collate(items)[0].size for items in found]
    assert sum(map(len, found)) == 300
    assert max(sizes) <= 256  # what a batch has before anything has been measured
    assert len([items for items in found if len(set(lengths(items))) > 1]) <= 2


def test_what_is_left_of_a_length_is_topped_up_with_the_next_shorter_ones() -> None:
    queue = make("text")
    add(queue, [3, 30, 40, 38] + [39] * 20)
    (first, *_) = found = batches(queue)
    assert lengths(first) == [40, 39, 39, 39, 39, 39]  # 6 x 40 of 256
    everything = [length for items in found for length in lengths(items)]
    assert sorted(everything) == [3, 30, 38, *[39] * 20, 40]
    assert lengths(found[-1])[-1] == 3


def test_texts_that_came_first_go_first_whatever_their_length() -> None:
    queue = make("text")
    add(queue, [70] * 50, turn=2)
    add(queue, [8] * 30, turn=1)
    assert queue.oldest(small=False) == 1
    assert lengths(queue.take(small=False)) == [8] * 30
    assert queue.oldest(small=False) == 2


def test_small_jobs_have_a_lane_and_lengths_of_their_own() -> None:
    queue = make("text")
    add(queue, [4] * 3, turn=1)
    add(queue, [4], turn=2, small=True)
    assert (queue.oldest(small=True), queue.oldest(small=False)) == (2, 1)
    (item,) = queue.take(small=True)
    assert queue.collate([item])[0].shape == (1, 104)
    assert queue.oldest(small=True) is None


def rows_after(queue: Queue, seconds_a_unit: float, length: int = 8) -> int:
    for _ in range(30):
        queue.measure(256, 256 * seconds_a_unit)
    add(queue, [length] * 3000)
    return len(batches(queue)[0])


@pytest.mark.parametrize(
    ("pace", "rows"), [(1.0, 16), (1 / 5000, 96), (1 / 9000, 192), (1e-9, 256)]
)
def test_a_batch_takes_a_fifth_of_a_second(pace: float, rows: int) -> None:
    """Or the next step below, and within the bounds of 128 to 2,048 tokens."""
    assert rows_after(make("text"), pace) == rows


def test_a_pace_that_wavers_changes_no_shapes() -> None:
    queue = make("text")
    rows_after(queue, 1 / 5600)  # 1,120 tokens in the time: not enough for a step up to 1,024
    found = {rows_after(queue, 1 / pace) for pace in (5600, 5200, 5500, 3900)}
    assert len(found) == 1


def test_batches_too_small_to_tell_are_not_measured() -> None:
    queue = make("text")
    queue.measure(127, 10.0)
    add(queue, [8] * 100)
    assert len(queue.take(small=False)) == 32


@pytest.mark.parametrize(("limit", "rows"), [(1024, 1024), (1, 1), (40, 32)])
def test_a_limit_replaces_the_processor_s(limit: int, rows: int) -> None:
    queue = make("image")
    queue.limit(limit)
    for _ in range(30):
        queue.measure(64, 1e-9)
    job = Job("image", 2000, 2, small=False)
    for row in range(2000):
        queue.add(job, row, np.zeros((2, 2, 3), np.uint8), 1)
    batch, units = queue.collate(queue.take(small=False))
    assert (len(batch), units) == (rows, rows)
