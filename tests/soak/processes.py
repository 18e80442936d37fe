"""Memory and descriptors of the processes that serve queries."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """One look at one kind of process: how many there are, and what they hold together."""

    processes: int
    resident_bytes: int
    descriptors: int
    threads: int


def look_at(pids: list[int]) -> Sample:
    """What some processes hold; one that has just gone holds nothing."""
    total = [0, 0, 0, 0]
    for pid in pids:
        folder = Path("/proc") / str(pid)
        try:
            found = (
                1,
                int((folder / "statm").read_text().split()[1]) * PAGE,
                sum(1 for _ in (folder / "fd").iterdir()),
                sum(1 for _ in (folder / "task").iterdir()),
            )
        except (OSError, IndexError):
            continue
        total = [old + new for old, new in zip(total, found, strict=True)]
    return Sample(*total)


@dataclass
class History:
    """Samples of one kind of process over time, in seconds since the beginning."""

    seconds: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, seconds: float, pids: list[int]) -> None:
        self.seconds.append(seconds)
        self.samples.append(look_at(pids))

    def per_process(self, name: str) -> list[float]:
        return [getattr(each, name) / max(1, each.processes) for each in self.samples]

    def growth(self, name: str) -> tuple[float, float]:
        """The median per process in the second quarter of the time, and in the last one.

        Of `processes`, their number.
        """
        counted = name == "processes"
        values = [each.processes for each in self.samples] if counted else self.per_process(name)
        quarter = max(1, len(values) // 4)
        return median(values[quarter : 2 * quarter] or values), median(values[-quarter:])

    def to_json(self) -> dict[str, object]:
        return {"seconds": self.seconds, "samples": [asdict(each) for each in self.samples]}
