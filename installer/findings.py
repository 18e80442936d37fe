"""What was found out: one line for a person or a program, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """`message` says what and where; `remedy` what to do, empty where nothing is to be done."""

    level: Literal["ok", "note", "warning", "error"]
    message: str
    remedy: str = ""


def reason(error: Exception) -> str:
    """The first line of what a driver or an engine says, without its stack trace."""
    text = str(error).partition(", Stack trace")[0].strip()
    return text.splitlines()[0] if text else type(error).__name__


def good(message: str) -> Finding:
    """All is well with something."""
    return Finding("ok", message)


def note(message: str, remedy: str = "") -> Finding:
    """Nothing is wrong, and somebody may want to know."""
    return Finding("note", message, remedy)


def warning(message: str, remedy: str) -> Finding:
    """It works, or may work, and something should be done."""
    return Finding("warning", message, remedy)


def bad(message: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding("error", message, remedy)
