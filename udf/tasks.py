"""What the service is working on at this moment, for the watchdog to look at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Waiting(Protocol):
    """Whoever waits for a task: a job, or a session."""

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        ...


class Task:
    """One piece of work in one thread, that others wait for."""

    __slots__ = ("thread", "waiting", "what")

    def __init__(self, what: str, waiting: Iterable[Waiting]) -> None:
        self.what = what
        self.waiting = tuple(waiting)
        self.thread = threading.get_ident()


class Tasks:
    """The tasks under way; every method may be called from any thread."""

    def __init__(self) -> None:
        self._tasks: set[Task] = set()
        self._lock = threading.Lock()

    @contextmanager
    def task(self, what: str, waiting: Iterable[Waiting]) -> Iterator[None]:
        """Note that this thread works on something, as long as the context is open."""
        task = Task(what, waiting)
        with self._lock:
            self._tasks.add(task)
        try:
            yield
        finally:
            with self._lock:
                self._tasks.remove(task)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not to be counted while this thread waits for other tasks; its time begins anew then."""
        thread = threading.get_ident()
        with self._lock:
            mine = {task for task in self._tasks if task.thread == thread}
            self._tasks -= mine
        try:
            yield
        finally:
            with self._lock:
                self._tasks |= mine

    def run(self, what: str, waiting: Waiting, work: Callable[[], None]) -> None:
        """Do some work in a pool, which keeps its exceptions to itself: `waiting` gets them."""
        try:
            with self.task(what, (waiting,)):
                work()
        except Exception as error:
            waiting.fail(error)

    def under_way(self) -> list[Task]:
        """The tasks that have begun and not ended."""
        with self._lock:
            return list(self._tasks)
