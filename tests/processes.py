"""Processes that a test did not start itself: what they are doing, and that they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Poll until the condition holds; the test fails, with `what`, if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} after {seconds} s"
        time.sleep(0.02)


def state_of(pid: int) -> str:
    """The state's letter, as in proc(5); "gone" if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    return state_of(pid) not in ("Z", "gone")


def wait_for_end(pid: int, seconds: float = 60) -> None:
    wait_until(lambda: not is_alive(pid), f"process {pid} is still there", seconds)


def children_of(pid: int) -> list[int]:
    """The processes that any thread of a process has started; none if it has gone."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:
        pass
    return found


def processes_with(*words: str) -> list[int]:
    """Processes whose command line has all of the words."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if all(word in arguments for word in words):
            found.append(int(folder.name))
    return found
