import threading

import numpy as np
import pytest

from clickhouse_clip.udf.jobs import Job


def test_an_empty_job_is_done() -> None:
    assert Job("text", 0, 2, small=True).wait().shape == (0, 2)


def test_a_job_is_done_when_each_row_has_its_vector_or_its_reason() -> None:
    job = Job("image", 3, 2, small=True)
    job.fill([2, 0], np.array([[3, 4], [1, 2]], np.float32))
    assert not job.done
    threading.Timer(0.05, job.skip, (1, "it is empty")).start()
    assert job.wait().tolist() == [[1, 2], [0, 0], [3, 4]]
    assert job.skipped == {1: "it is empty"}


def test_a_job_that_fails_raises_its_error() -> None:
    job = Job("text", 2, 2, small=True)
    job.fail(RuntimeError("no memory"))
    assert job.done
    with pytest.raises(RuntimeError, match="no memory"):
        job.wait()
