"""The service's log: a file of bounded size, which fails no query."""

from __future__ import annotations

import errno
import logging
import logging.handlers
import os

from clickhouse_clip.udf.errors import ServiceError
from clickhouse_clip.udf.settings import Settings

_FULL = (errno.ENOSPC, errno.EDQUOT)


def open_log(settings: Settings) -> None:
    """Log to the settings' file. Raises `ServiceError` if it cannot be opened.

    On a full disk the service runs without a log, and writes again when there is room.
    """
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handler = logging.handlers.RotatingFileHandler(
        settings.log_file, maxBytes=settings.log_max_bytes // 2, backupCount=1, delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(process)d %(message)s"))
    try:
        settings.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.log_file.open("a").close()
    except OSError as error:
        if error.errno not in _FULL:
            raise ServiceError(
                f"the log {settings.log_file} cannot be written ({error.strerror}); "
                f"user {os.geteuid()} must be able to"
            ) from error
    root.addHandler(handler)
    logging.raiseExceptions = False  # a full disk must not fail queries
    logging.captureWarnings(True)
