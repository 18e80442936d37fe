"""Where the installer writes: the running system, or the tree of an image that is being built.

Every path in a plan is the one that the running server will see. `Root.at` says where that is now,
and is used at the moment of reading or writing, nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Root:
    """`directory` is the folder that will be `/`; None for the running system itself."""

    directory: Path | None = None

    def at(self, path: Path) -> Path:
        """Where the running system's `path` is now."""
        return path if self.directory is None else self.directory / path.relative_to("/")

    def seen(self, path: Path) -> Path:
        """What the running system will call `path`, if it lies below the root; else `path`."""
        if self.directory is not None and path.is_relative_to(self.directory):
            return Path("/") / path.relative_to(self.directory)
        return path
