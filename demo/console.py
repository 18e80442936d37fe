"""What the tour shows: headings, SQL, results, progress. In colours only on a terminal."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_BOLD, _DIM, _BLUE, _GREEN, _OFF = "\33[1m", "\33[2m", "\33[34m", "\33[32m", "\33[0m"
_TOKENS = re.compile(r"(?P<string>'(?:[^'\\]|\\.)*')|(?P<keyword>\b[A-Z]{2,}\b)")
_INDENT = "    "
_CLEAR = "\r\33[K"  # back to the line's start, and empty it
_BAR = 24  # characters
_BAR_SECONDS, _LINE_SECONDS = 0.2, 10.0


class Console:
    """Writes to `stream`, with colours and moving progress if it is a terminal.

    Paths below `here` are shown relative to it.
    """

    def __init__(self, stream: TextIO, here: Path) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._here = f"{here}/"

    def heading(self, text: str) -> None:
        """Begin a part of the tour."""
        self._line(f"{self._paint(_BOLD, text)}\n")

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
    def progress(self, count: Callable[[], int], total: int) -> Iterator[None]:
        """While the block runs, show again and again how far it is: `count` of `total`.

        A moving bar on a terminal; elsewhere a line now and then.
        """
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_BAR_SECONDS if self._terminal else _LINE_SECONDS):
                self._advance(min(count(), total), total)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self._terminal:
                self._write(_CLEAR)

    def _advance(self, done: int, total: int) -> None:
        if not self._terminal:
            self.note(f"{done:,} of {total:,}")
            return
        filled = _BAR * done // total
        bar = "█" * filled + "░" * (_BAR - filled)
        self._write(f"{_CLEAR}{_INDENT}{bar} {done:,} of {total:,}")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_OFF}" if self._terminal else text

    def _line(self, text: str) -> None:
        self._write(text.replace(self._here, "") + "\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return str(value)
