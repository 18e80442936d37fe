"""Files that a running service depends on, watched for being replaced or written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Identity = tuple[int, ...]


class Sources:
    """Some files as they were when this was made; take it before they are read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._identities = [(path, identity(path)) for path in paths]

    def changed(self) -> Path | None:
        """The first file that is another one now, or None.

        A file that is gone for a moment is being replaced, and what was read or mapped of it stays
        as it was: not until another one is there has it changed.
        """
        for path, then in self._identities:
            if identity(path) not in (then, None):
                return path
        return None


def identity(path: str | Path, directory: int | None = None) -> Identity | None:
    """What changes when a file is replaced or written; None if there is none.

    With the time of its last status change, which whoever writes it cannot set back.
    """
    try:
        status = os.stat(path, dir_fd=directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
