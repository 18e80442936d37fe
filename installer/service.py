"""The encoder service of an installation: what it says, and its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from clickhouse_clip.installer import disk
from clickhouse_clip.installer.record import FOLDER
from clickhouse_clip.udf import launch
from clickhouse_clip.udf.errors import ServiceError
from clickhouse_clip.udf.settings import Settings

_STOP_SECONDS = 20.0


def status(settings: Settings) -> dict[str, Any] | None:
    """The running service's report, None if none runs; `ServiceError` if it is unreachable."""
    # Asking makes the runtime folder, which then belongs to whoever asks.
    if not (settings.runtime_dir / launch.SOCKET_NAME).exists():
        return None
    return launch.request_report(str(settings.runtime_dir), "status")


def stop(settings: Settings) -> bool:
    """Let the service leave, and wait for that; whether there was one and it has gone."""
    if not (settings.runtime_dir / launch.SOCKET_NAME).exists():
        return False
    report = launch.request_report(str(settings.runtime_dir), "stop")
    if report is None:
        return False
    process = Path("/proc") / str(report["pid"])
    deadline = time.monotonic() + _STOP_SECONDS
    while _runs(process):
        if time.monotonic() > deadline:
            raise ServiceError(f"the encoder service {report['pid']} is still finishing its work")
        time.sleep(0.05)
    return True


def _runs(process: Path) -> bool:
    """Whether a process still runs, by its folder in /proc.

    One that has ended may stay listed: in a container whose first process collects no orphans.
    """
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def clear(settings: Settings) -> None:
    """Remove what the service left behind: its socket, lock and log, and its folders if empty."""
    log = settings.log_file
    for file in (
        settings.runtime_dir / launch.SOCKET_NAME,
        settings.runtime_dir / launch.LOCK_NAME,
        log,
        log.with_name(f"{log.name}.1"),
    ):
        if file.is_socket() or file.is_file():
            disk.remove(file)
    for folder in (settings.runtime_dir, log.parent):
        if FOLDER in folder.parts:  # another one is the administrator's
            disk.remove_folder(folder)
