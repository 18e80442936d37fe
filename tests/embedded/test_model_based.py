"""Random sequences of queries, failures, cancels, kills and restarts, held against a model.

The model knows the answer of every query (the toy bundle computed again in numpy), and which
queries may fail: those that ask for it, that are cancelled, or whose worker was killed.
Whatever else fails, or one vector that is not its row's, fails the test. `SEQUENCES` and `STEPS`
make it longer (`make fuzz`); a sequence depends on its number alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from clickhouse_clip.udf.launch import SOCKET_NAME
from tests.embedded.conftest import Server
from tests.embedded.engine import Engine, QueryError, Rows
from tests.embedded.questions import Question, Questions
from tests.processes import children_of, is_alive, processes_with

SEQUENCES = int(os.environ.get("SEQUENCES", "1"))
STEPS = int(os.environ.get("STEPS", "60"))

#: Queries under way at once.
AT_ONCE = 6

#: What ClickHouse says when it meets a worker that was killed.
DEAD_WORKER = ("Child process", "Broken pipe", "Cannot write", "Cannot read", "exited", "EOF")


@dataclass
class Query:
    """A query under way."""

    question: Question
    answer: Future[Rows]
    may_fail: tuple[str, ...] = ()
    deaths: int = 0  # of the service, while it was under way


class Sequence:
    """Drives one server; `counts` says what was done, and what came of it."""

    def __init__(self, server: Server, engine: Engine, seed: int, counts: Counter[str]) -> None:
        self._server = server
        self._engine = engine
        self._questions = Questions(f"q{seed}x", seed, server.user_files)
        self._random = self._questions.random
        self._under_way: list[Query] = []
        self._dead_workers = 0
        self.counts = counts

    def step(self) -> None:
        """Begin a query, break something, or take an answer."""
        if len(self._under_way) >= AT_ONCE:
            self._finish(self._random.randrange(len(self._under_way)))
        actions = {
            self._ask: 46, self._cancelled: 3, self._take: 10, self._kill_service: 4,
            self._stop_service: 3, self._kill_worker: 2, self._remove_socket: 1,
            self._touch_settings: 1,
        }  # fmt: skip
        action = self._random.choices(list(actions), list(actions.values()))[0]
        if action != self._ask:
            self.counts[action.__name__.strip("_")] += 1
        action()

    def finish(self) -> None:
        """Take all answers; then everything works again."""
        while self._under_way:
            self._finish(0)
        for _ in range(self._dead_workers + 5):
            self._begin(self._questions.constant())
            self._begin(self._questions.both())
            self._finish(0)
            self._finish(0)

    def _begin(self, question: Question, *may_fail: str) -> None:
        self.counts[f"asked: {question.kind}"] += 1
        self._under_way.append(Query(question, self._engine.start(question.sql), may_fail))

    def _ask(self) -> None:
        self._begin(self._questions.any())

    def _cancelled(self) -> None:
        """ClickHouse gives it up in the middle, with blocks that nobody will ask for."""
        sql = (
            f"SELECT encode_text('{self._questions.prefix()}' || toString(number)) "
            "FROM numbers(200000) SETTINGS max_execution_time = 0.3, max_block_size = 5000"
        )
        question = Question("cancelled", sql, 200_000, lambda found: len(found) == 200_000)
        self._begin(question, "TIMEOUT_EXCEEDED", "Timeout exceeded")

    def _take(self) -> None:
        if self._under_way:
            self._finish(self._random.randrange(len(self._under_way)))

    def _kill_service(self) -> None:
        self._signal_services(signal.SIGKILL)

    def _stop_service(self) -> None:
        """It is told to leave, and finishes what it has begun: nobody notices."""
        for pid in self._services():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _kill_worker(self) -> None:
        workers = children_of(self._engine.process.pid)
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._random.choice(workers), signal.SIGKILL)
            self._dead_workers += 1

    def _remove_socket(self) -> None:
        (self._server.settings.runtime_dir / SOCKET_NAME).unlink(missing_ok=True)

    def _touch_settings(self) -> None:
        self._server.settings_file.touch()

    def _services(self) -> list[int]:
        path = str(self._server.settings_file)
        return [pid for pid in processes_with("clickhouse_clip.udf.service", path) if is_alive(pid)]

    def _signal_services(self, number: int) -> None:
        for pid in self._services():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        for query in self._under_way:
            query.deaths += 1

    def _finish(self, position: int) -> None:
        query = self._under_way.pop(position)
        question = query.question
        try:
            found = query.answer.result(120)
        except QueryError as error:
            self._failed(query, str(error))
        else:
            assert not question.error, f"should have failed: {question.sql}"
            assert question.check(found), f"a wrong answer: {question.sql}"
            self.counts["right"] += 1

    def _failed(self, query: Query, message: str) -> None:
        if query.question.error and query.question.error in message:
            self.counts["failed as they must"] += 1
        elif any(word in message for word in query.may_fail):
            self.counts["given up by ClickHouse"] += 1
        elif query.deaths >= 2 and ("stopped twice" in message or "without a word" in message):
            self.counts["failed after two kills of the service"] += 1
        elif self._dead_workers and any(word in message for word in DEAD_WORKER):
            self._dead_workers -= 1
            self.counts["failed by a worker that was killed"] += 1
        else:
            pytest.fail(f"{query.question.sql}\n{message[:1000]}")


def test_every_answer_belongs_to_its_row(server: Server, engine: Engine) -> None:
    counts: Counter[str] = Counter()
    for seed in range(SEQUENCES):
        sequence = Sequence(server, engine, seed, counts)
        try:
            for _ in range(STEPS):
                sequence.step()
            sequence.finish()
        except BaseException:
            print(f"in sequence {seed}, after {dict(counts)}")
            raise
    assert counts["right"] > SEQUENCES * STEPS / 4
    for name, count in sorted(counts.items()):
        print(f"{count:6}  {name.replace('_', ' ')}")
