"""The watchdog and what it looks at, tick by tick and without waiting."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from clickhouse_clip.config import __path__ as config_path
from clickhouse_clip.udf import frames, watchdog, worker
from clickhouse_clip.udf.sources import Sources
from clickhouse_clip.udf.tasks import Tasks
from clickhouse_clip.udf.watchdog import HANG_SECONDS, Watchdog


class Waiter:
    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.alive = 0

    def fail(self, error: Exception) -> None:
        self.errors.append(error)

    def say_alive(self) -> None:
        self.alive += 1


class World:
    """A watchdog whose end is noted, and the tasks that it looks at."""

    def __init__(self) -> None:
        self.tasks = Tasks()
        self.events: list[str] = []
        self.session = Waiter()
        self.dog = Watchdog(
            self.tasks,
            lambda: [self.session],
            lambda: self.events.append("retired"),
            lambda code: self.events.append(f"ended with {code}"),
        )

    def tick(self, times: int) -> None:
        for _ in range(times):
            self.dog.tick()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(watchdog, "_LAST_WORDS_SECONDS", 0)
    return World()


def test_a_task_that_takes_too_long_ends_the_service(world: World) -> None:
    waiting, other = Waiter(), Waiter()
    with world.tasks.task("doing one thing", [waiting]):
        world.tick(HANG_SECONDS - 1)
        with world.tasks.task("doing another", [other]):
            world.tick(1)
            assert world.events == []
            world.tick(1)
    assert world.events == ["retired", "ended with 1"]
    assert [str(error) for error in waiting.errors] == [
        f"the encoder has been doing one thing for more than {HANG_SECONDS} s and hangs; it is "
        "being ended, the next query starts another; its log shows where it hung"
    ]
    assert other.errors == []


def test_many_tasks_after_each_other_are_no_hang(world: World) -> None:
    for _ in range(10):
        with world.tasks.task("encoding", [Waiter()]):
            world.tick(HANG_SECONDS // 2)
    assert world.events == []


def test_a_task_that_waits_for_others_is_not_counted(world: World) -> None:
    with world.tasks.task("decoding", [Waiter()]):
        world.tick(HANG_SECONDS // 2)
        with world.tasks.paused():
            world.tick(10 * HANG_SECONDS)
        world.tick(HANG_SECONDS - 1)
    assert world.events == []


def test_the_log_shows_where_it_hangs(world: World, caplog: pytest.LogCaptureFixture) -> None:
    begun, end = threading.Event(), threading.Event()

    def hang_here() -> None:
        with world.tasks.task("hanging", []):
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=hang_here)
    thread.start()
    begun.wait(60)
    world.tick(HANG_SECONDS + 1)
    end.set()
    thread.join()
    assert "hanging for more than" in caplog.text
    assert "in hang_here" in caplog.text


def test_sessions_hear_regularly_that_the_service_is_alive(world: World) -> None:
    world.tick(60)
    assert world.session.alive == 60 / frames.ALIVE_SECONDS


def test_a_fault_in_a_pool_reaches_who_waits_for_it() -> None:
    waiting, tasks = Waiter(), Tasks()
    tasks.run("decoding", waiting, lambda: [][0])
    assert [type(error) for error in waiting.errors] == [IndexError]
    assert tasks.under_way() == []


def test_the_limits_fit_into_what_clickhouse_waits() -> None:
    """A block that waited behind a hung one, and hangs itself, still fails with a message."""
    template = (Path(config_path[0]) / "templates" / "functions.xml.j2").read_text()
    patience = int(template.partition("<command_read_timeout>")[2].partition("<")[0]) / 1000
    assert 2 * HANG_SECONDS < worker._ROW_SECONDS < patience
    assert worker._SILENT_POLLS * frames.ALIVE_SECONDS < HANG_SECONDS


def test_an_alive_frame_never_waits() -> None:
    """Nor is it ever sent in part: a worker that does not read gets none."""
    from clickhouse_clip.udf.session import Session

    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = Session(ours, None, None, 0)  # type: ignore[arg-type]
        session.say_alive()  # idle: nothing
        session.idle = False
        for _ in range(100_000):
            session.say_alive()
        ours.shutdown(socket.SHUT_WR)
        data = b"".join(iter(lambda: theirs.recv(65536), b""))
    frame = frames.encode(frames.ALIVE)
    assert data == frame * (len(data) // len(frame))
    assert 0 < len(data) < 100_000 * len(frame)


def test_a_file_is_changed_when_another_is_there(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    file.write_bytes(b"as it was")
    sources = Sources([file])
    assert sources.changed() is None
    file.rename(other)
    assert sources.changed() is None  # being replaced, or gone under a process that has read it
    other.rename(file)
    file.write_bytes(b"as it is ")
    assert sources.changed() == file
