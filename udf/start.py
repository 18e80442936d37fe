"""Starting the encoder service: a process of its own, which belongs to no worker."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from clickhouse_clip.udf.confine import kept_environment
from clickhouse_clip.udf.errors import ServiceError

#: Isolated, and writing no .pyc files: whose they would be depends on who asks first.
_SERVICE = ("-IBm", "clickhouse_clip.udf.service")

#: A service is up in about 0.1 s; a machine that needs longer than this is in real trouble.
_START_SECONDS = 60.0

_READY = b"ready"


def start_service(settings_path: str, note: str = "") -> bool:
    """Start the service and wait until it listens; False if it left without a word.

    `note` goes to its log. Raises `ServiceError` with the service's reason if it has one, or if it
    does not listen in time; it is killed then.
    """
    listening, ready = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *_SERVICE, settings_path, str(ready), note],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(ready,),
            cwd="/",
            env=kept_environment(os.environ),
            start_new_session=True,
        )
    except OSError as error:
        os.close(listening)
        raise ServiceError(
            f"the encoder service cannot be started: {sys.executable}: {error.strerror}"
        ) from error
    finally:
        os.close(ready)
    try:
        message = _wait(listening)
        if message is None:
            # It has forked, and both are of one process group.
            os.killpg(process.pid, signal.SIGKILL)
            raise ServiceError(
                "the encoder service cannot be started: it did not listen within "
                f"{_START_SECONDS:.0f} s"
            )
    finally:
        os.close(listening)
        process.wait()  # it forks: the service itself belongs to nobody
    if message not in (_READY, b""):
        reason = message.decode("utf-8", "replace")
        raise ServiceError(f"the encoder service cannot be started: {reason}")
    return message == _READY


def _wait(listening: int) -> bytes | None:
    """What the service says; nothing if it left, None if it says nothing in time."""
    message = b""
    deadline = time.monotonic() + _START_SECONDS
    while message != _READY:
        waiting = max(0.0, deadline - time.monotonic())
        if not select.select([listening], [], [], waiting)[0]:
            return None
        data = os.read(listening, 65536)
        message += data
        if not data:
            break
    return message
