"""The watchdog: ends a service that hangs, and tells workers that one that does not is alive.

A batch takes a fraction of a second, a picture or a model some seconds. Code that runs for minutes
will not come back: a fault in a native library, or a file system that has gone away. Nothing but
the end of the process gets such a thread back. The queries that wait for it fail with a message
that says so; all others are sent again by their workers, to the next service.

Time is counted in the watchdog's own ticks. So neither a clock that jumps nor a machine that was
suspended makes it bite, and one too busy to run the watchdog has longer.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Protocol

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.errors import ServiceError
from clickhouse_clip.udf.tasks import Task, Tasks

_log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0

#: A task that takes longer hangs. A block that was waiting behind it is sent again; twice this time
#: fits into the 600 s that ClickHouse waits for its rows (`command_read_timeout`).
HANG_SECONDS = 240

#: For sessions to send the errors that they were woken up with.
_LAST_WORDS_SECONDS = 2.0


class Listener(Protocol):
    """A session, which passes on that the service is alive."""

    def say_alive(self) -> None:
        """Send an ALIVE frame, if the peer waits for an answer."""
        ...


class Watchdog:
    """Looks at `tasks` every second, in a thread.

    `sessions` gives those connected. `retire` is called before the end, so that no worker finds
    this service any more; `end` ends the process.
    """

    def __init__(
        self,
        tasks: Tasks,
        sessions: Callable[[], Iterable[Listener]],
        retire: Callable[[], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._tasks = tasks
        self._sessions = sessions
        self._retire = retire
        self._end = end
        self._ages: dict[Task, int] = {}
        self._ticks = 0

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            self.tick()

    def tick(self) -> None:
        """Look once."""
        self._ages = {task: self._ages.get(task, 0) + 1 for task in self._tasks.under_way()}
        hung = [task for task, age in self._ages.items() if age > HANG_SECONDS / _TICK_SECONDS]
        if hung:
            self._bite(hung)
        self._ticks += 1
        if self._ticks % int(frames.ALIVE_SECONDS / _TICK_SECONDS) == 0:
            for session in self._sessions():
                session.say_alive()

    def _bite(self, hung: list[Task]) -> None:
        self._retire()
        stacks = sys._current_frames()
        for task in hung:
            frame = stacks.get(task.thread)
            stack = "".join(traceback.format_stack(frame)) if frame else "the end of its thread"
            _log.critical("%s for more than %d s, at:\n%s", task.what, HANG_SECONDS, stack)
            error = ServiceError(
                f"the encoder has been {task.what} for more than {HANG_SECONDS} s and hangs; it is "
                "being ended, the next query starts another; its log shows where it hung"
            )
            for waiting in task.waiting:
                waiting.fail(error)
        time.sleep(_LAST_WORDS_SECONDS)
        _log.critical("hangs: leaving at once")
        logging.shutdown()
        self._end(1)
