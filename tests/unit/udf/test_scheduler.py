import threading
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clickhouse_clip.udf.jobs import Job
from clickhouse_clip.udf.queues import Batching
from clickhouse_clip.udf.scheduler import SMALL_ROWS, Scheduler


class FakeTower:
    """Encodes a row to (its first value, how many values it has before padding)."""

    def __init__(self) -> None:
        self.batches: list[NDArray[Any]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.running = threading.Event()
        self.failure: Exception | None = None
        self.serves_two = False

    def serve_two(self) -> None:
        self.serves_two = True

    def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        self.running.set()
        self.may_run.wait(10)
        self.batches.append(batch)
        if self.failure:
            raise self.failure
        flat = batch.reshape(len(batch), -1)
        return np.stack([flat[:, 0], (flat != 0).sum(1)], axis=1).astype(np.float32)


def collate(tokens: Any, length: int) -> NDArray[Any]:
    result = np.zeros((len(tokens), length), np.int64)
    for row, ids in zip(result, tokens, strict=True):
        row[: len(ids)] = ids
    return result


@pytest.fixture
def towers() -> dict[str, FakeTower]:
    return {"text": FakeTower(), "image": FakeTower()}


@pytest.fixture
def scheduler(towers: dict[str, FakeTower]) -> Scheduler:
    scheduler = Scheduler(
        {
            "text": Batching(lambda tokens, _: len(tokens), collate),
            "image": Batching(lambda *_: 0, lambda pixels, _: np.stack(pixels)),
        }
    )
    scheduler.add_tower("text", towers["text"])
    scheduler.add_tower("image", towers["image"])
    return scheduler


def text(value: int, length: int) -> NDArray[np.int64]:
    return np.full(length, value, np.int64)


def submit_texts(scheduler: Scheduler, lengths: list[int], first: int = 1) -> Job:
    job = Job("text", len(lengths), 2, small=len(lengths) <= SMALL_ROWS)
    values = [text(first + row, length) for row, length in enumerate(lengths)]
    scheduler.submit(job, range(len(lengths)), values)
    return job


def test_rows_get_their_own_vectors_whatever_batches_they_were_in(
    scheduler: Scheduler, towers: dict[str, FakeTower]
) -> None:
    lengths = np.random.default_rng(0).integers(1, 77, 3000).tolist()
    vectors = submit_texts(scheduler, lengths).wait()
    assert vectors[:, 0].tolist() == [1 + row for row in range(3000)]
    assert vectors[:, 1].tolist() == lengths
    assert sum(map(len, towers["text"].batches)) == 3000


def test_jobs_of_several_workers_share_a_batch(
    scheduler: Scheduler, towers: dict[str, FakeTower]
) -> None:
    tower = towers["text"]
    tower.may_run.clear()
    first = submit_texts(scheduler, [3])
    tower.running.wait(10)
    jobs = [submit_texts(scheduler, [4, 5], first=10 * n) for n in range(1, 5)]
    tower.may_run.set()
    first.wait()
    for n, job in enumerate(jobs, 1):
        assert job.wait()[:, 0].tolist() == [10 * n, 10 * n + 1]
    assert [len(batch) for batch in tower.batches] == [1, 8]


def test_small_jobs_do_not_wait_for_bulk_ones_and_bulk_ones_do_not_starve(
    scheduler: Scheduler, towers: dict[str, FakeTower]
) -> None:
    tower = towers["text"]
    tower.may_run.clear()
    bulk = submit_texts(scheduler, [8] * 2000, first=1000)
    tower.running.wait(10)
    tower.running.clear()
    small = submit_texts(scheduler, [8], first=7)
    assert tower.running.wait(10)  # beside the bulk batch, which is being encoded
    tower.may_run.set()
    assert small.wait()[0, 0] == 7
    assert bulk.wait()[:, 0].tolist() == list(range(1000, 3000))
    # And while small jobs keep coming, a bulk one is finished all the same.
    bulk = submit_texts(scheduler, [8] * 2000, first=1000)
    while not bulk.done:
        submit_texts(scheduler, [8], first=3).wait()
    assert bulk.wait()[:, 0].tolist() == list(range(1000, 3000))


def test_a_tower_is_told_when_both_lanes_use_it(
    scheduler: Scheduler, towers: dict[str, FakeTower]
) -> None:
    submit_texts(scheduler, [8]).wait()
    submit_texts(scheduler, [9]).wait()
    pixels = [np.full((2, 2, 3), 1, np.uint8)] * 40
    job = Job("image", 40, 2, small=False)
    scheduler.submit(job, range(40), pixels)
    job.wait()
    assert not any(tower.serves_two for tower in towers.values())
    submit_texts(scheduler, [8] * 100).wait()
    assert towers["text"].serves_two
    assert not towers["image"].serves_two


def test_pictures_and_texts_take_turns(scheduler: Scheduler, towers: dict[str, FakeTower]) -> None:
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in range(1, 101)]
    job = Job("image", 100, 2, small=False)
    texts = submit_texts(scheduler, [8] * 1000)
    scheduler.submit(job, range(100), pixels)
    assert job.wait()[:, 0].tolist() == list(range(1, 101))
    assert len(texts.wait()) == 1000
    assert max(map(len, towers["image"].batches)) <= 64


def test_a_failing_tower_fails_its_jobs_and_goes_on(
    scheduler: Scheduler, towers: dict[str, FakeTower]
) -> None:
    towers["text"].failure = RuntimeError("no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        submit_texts(scheduler, [5] * 100).wait()
    towers["text"].failure = None
    assert submit_texts(scheduler, [5]).wait().tolist() == [[1, 5]]
    assert scheduler.waiting == 0


def test_embeddings_that_are_not_finite_are_an_error(scheduler: Scheduler) -> None:
    class Broken(FakeTower):
        def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
            return np.full((len(batch), 2), np.nan, np.float32)

    scheduler.add_tower("text", Broken())
    with pytest.raises(ArithmeticError, match="not finite"):
        submit_texts(scheduler, [5]).wait()


def test_batches_shrink_while_the_tower_is_slow(scheduler: Scheduler) -> None:
    class Slow(FakeTower):
        def encode(self, batch: NDArray[Any]) -> NDArray[np.float32]:
            time.sleep(0.002 * batch.size)
            return super().encode(batch)

    slow = Slow()
    scheduler.add_tower("text", slow)
    submit_texts(scheduler, [8] * 150).wait()
    assert len(slow.batches[0]) == 32
    assert {len(batch) for batch in slow.batches[1:-1]} == {16}
