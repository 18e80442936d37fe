from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clickhouse_clip.udf.encoder import _step_back


@pytest.mark.parametrize("more", [0, 10])
def test_decoding_steps_back_and_never_forward(more: int) -> None:
    """A server that runs at a low priority may not raise it, so neither may its encoder."""

    def niceness() -> tuple[int, int]:
        before = os.nice(more)  # of this thread alone
        _step_back()
        return before, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    with ThreadPoolExecutor(1) as pool:
        before, after = pool.submit(niceness).result()
    assert after == max(before, 5)
