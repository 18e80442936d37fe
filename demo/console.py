"""What the tour shows: headings, SQL, results, progress. In colours only on a terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

_BOLD, _DIM, _BLUE, _GREEN, _OFF = "\33[1m", "\33[2m", "\33[34m", "\33[32m", "\33[0m"
_TOKENS = re.compile(r"(?P<string>'(?:[^'\\]|\\.)*')|(?P<keyword>\b[A-Z]{2,}\b)")
_INDENT = "    "


class Console:
    """Writes to `stream`, with colours and moving progress if it is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._progress_width = 0
        self._progress_time = time.monotonic()

    def heading(self, text: str) -> None:
        """Begin a part of the tour."""
        self._line(f"\n{self._paint(_BOLD, text)}\n")

    def command(self, text: str) -> None:
        """Show a shell command."""
        self._line(f"{_INDENT}{self._paint(_DIM, '$')} {text}")

    def note(self, text: str) -> None:
        """Show a line of explanation."""
        self._line(f"{_INDENT}{self._paint(_DIM, text)}")

    def text(self, text: str) -> None:
        """Show lines as they are."""
        self._line("\n".join(f"{_INDENT}{line}" for line in text.splitlines()))

    def statement(self, sql: str) -> None:
        """Show an SQL statement before it runs."""

        def paint(match: re.Match[str]) -> str:
            return self._paint(_GREEN if match["string"] else _BLUE, match[0])

        self.text(_TOKENS.sub(paint, sql) + ";")

    def outcome(self, text: str, seconds: float) -> None:
        """Close a statement: what came of it, and how long it took."""
        took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
        self._line(
            f"{_INDENT}{self._paint(_DIM, f'-- {text}, {took}' if text else f'-- {took}')}\n"
        )

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a result, aligned: numbers to the right."""
        cells = [[_text(value) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        right = [
            all(isinstance(value, int | float) for value in column)
            for column in zip(*rows, strict=True)
        ] or [False] * len(columns)

        def line(values: Sequence[str]) -> str:
            return "   ".join(
                value.rjust(width) if number else value.ljust(width)
                for value, width, number in zip(values, widths, right, strict=True)
            ).rstrip()

        self._line(_INDENT + self._paint(_DIM, line(columns)))
        for row in cells:
            self._line(_INDENT + line(row))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Clears away, at the end, what `advance` has shown."""
        try:
            yield
        finally:
            if self._terminal and self._progress_width:
                self._write("\r" + " " * self._progress_width + "\r")
            self._progress_width = 0

    def advance(self, done: int, total: int) -> None:
        """Show how far a long step is: as a bar, or without a terminal as a line now and then."""
        if self._terminal:
            filled = 24 * min(done, total) // max(total, 1)
            text = f"{_INDENT}{'█' * filled}{'░' * (24 - filled)} {done:,} of {total:,}"
            self._progress_width = max(self._progress_width, len(text))
            self._write("\r" + text)
        elif time.monotonic() - self._progress_time > 10:
            self._progress_time = time.monotonic()
            self.note(f"{done:,} of {total:,}")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_OFF}" if self._terminal else text

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
