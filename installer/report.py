"""All that the installer prints: for people, quietly, or as JSON.

With `--json` there is one object on stdout, whatever happens:

    status      installed, unchanged, would-change, checked, uninstalled or failed
    changes     path, change (new, changed, unchanged, kept, removed), mode, why
    functions   SQL names; model, in words
    findings    level (ok, note, warning, error), message, remedy
    error       the message of a failure
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TextIO

from clickhouse_clip.installer.compare import Placed
from clickhouse_clip.installer.findings import Finding
from clickhouse_clip.installer.owner import Owner

Mode = Literal["text", "quiet", "json"]

_COLORS = {"ok": "32", "note": "36", "warning": "33", "error": "31", "new": "32", "changed": "33",
           "removed": "31", "kept": "36"}  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What a run has to say at its end."""

    status: str = "failed"
    changes: Sequence[Placed] = ()
    functions: Sequence[str] = ()
    model: str = ""
    owner: Owner | None = None
    findings: list[Finding] = field(default_factory=list)
    next_steps: Sequence[str] = ()

    @property
    def wrong(self) -> bool:
        """Whether something does not work."""
        return any(finding.level == "error" for finding in self.findings)


class Report:
    """Prints what a run does, in one of three ways."""

    def __init__(self, mode: Mode, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._mode = mode
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err

    def progress(self, what: str) -> None:
        """A long step begins; only somebody who watches is told."""
        if self._mode == "text" and self._err.isatty():
            print(f"{what} …", file=self._err, flush=True)

    def failure(self, message: str) -> None:
        """The run has failed, for this reason."""
        if self._mode == "json":
            print(json.dumps({"status": "failed", "error": message}, indent=2), file=self._out)
        else:
            print(f"install-udfs: {message}", file=self._err)

    def outcome(self, outcome: Outcome, *, diffs: bool = False) -> None:
        """All that there is to say at the end; with the differences of the files if `diffs`."""
        if self._mode == "json":
            print(json.dumps(_as_json(outcome, diffs), indent=2), file=self._out)
            return
        if self._mode == "quiet":
            self._findings(f for f in outcome.findings if f.level in ("warning", "error"))
            return
        self._changes(outcome, diffs)
        if outcome.functions:
            print(f"\nFunctions: {', '.join(outcome.functions)}", file=self._out)
            print(f"Model: {outcome.model}", file=self._out)
            if outcome.owner is not None:
                owner = outcome.owner
                print(f"Owner: {owner.uid}:{owner.gid} ({owner.source})", file=self._out)
        self._findings(outcome.findings)
        for step in outcome.next_steps:
            print(step, file=self._out)

    def _changes(self, outcome: Outcome, diffs: bool) -> None:
        for entry in outcome.changes:
            change = self._colored(f"{entry.change:>9}", entry.change, self._out)
            print(f"{change}  {entry.file.path}  ({entry.file.why})", file=self._out)
        for entry in outcome.changes if diffs else ():
            difference = entry.diff() if entry.change != "unchanged" else ""
            if difference:
                print(f"\n{difference}", end="", file=self._out)

    def _findings(self, findings: Iterable[Finding]) -> None:
        # What is wrong goes where a person sees it even when stdout is a file.
        for finding in findings:
            stream = self._err if finding.level == "error" else self._out
            level = self._colored(f"{finding.level:>9}", finding.level, stream)
            print(f"{level}  {finding.message}", file=stream)
            if finding.remedy:
                print(f"{'':>9}  → {finding.remedy}", file=stream)

    def _colored(self, text: str, name: str, stream: TextIO) -> str:
        if name in _COLORS and stream.isatty():
            return f"\x1b[{_COLORS[name]}m{text}\x1b[0m"
        return text


def _as_json(outcome: Outcome, diffs: bool) -> dict[str, Any]:
    changes = []
    for entry in outcome.changes:
        values = {
            "path": str(entry.file.path),
            "change": entry.change,
            "mode": f"{entry.file.mode:04o}",
            "why": entry.file.why,
        }
        if diffs and entry.change != "unchanged":
            values["diff"] = entry.diff()
        changes.append(values)
    return {
        "status": outcome.status,
        "changes": changes,
        "functions": list(outcome.functions),
        "model": outcome.model,
        "owner": None if outcome.owner is None else asdict(outcome.owner),
        "findings": [asdict(finding) for finding in outcome.findings],
    }
