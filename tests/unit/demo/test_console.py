from __future__ import annotations

import io
import time
from pathlib import Path

from clickhouse_clip.demo.console import Console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    output = io.StringIO()
    Console(output, Path("/")).table(("name", "n"), [("a", 5), ("long", 12), ("b", 0.5)])
    assert output.getvalue() == (
        "    name      n\n    a         5\n    long     12\n    b      0.50\n"
    )


def test_a_result_without_rows() -> None:
    output = io.StringIO()
    Console(output, Path("/")).table(("name", "n"), [])
    assert output.getvalue() == "    name   n\n"


def test_times_and_paths_are_short() -> None:
    output = io.StringIO()
    console = Console(output, Path("/home/me"))
    console.outcome("", 0.0123)
    console.outcome("3 rows", 2.345)
    console.text("/home/me/demo-out/x\n/srv/y")
    assert output.getvalue() == (
        "    -- 12 ms\n\n    -- 3 rows, 2.3 s\n\n    demo-out/x\n    /srv/y\n"
    )


def test_colours_are_for_terminals_and_only_on_sql_words() -> None:
    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        Console(stream, Path("/")).statement("SELECT encode_text('SELECT it\\'s') FROM t")
    assert plain.getvalue() == "    SELECT encode_text('SELECT it\\'s') FROM t;\n"
    assert coloured.getvalue().count("\33[34m") == 2  # the word in the string is none
    assert "\33[32m'SELECT it\\'s'\33[0m" in coloured.getvalue()


def test_progress_moves_on_a_terminal_and_leaves_nothing_behind() -> None:
    output = Terminal()
    with Console(output, Path("/")).progress(lambda: 700, 600):
        time.sleep(0.5)
    assert "600 of 600" in output.getvalue()
    assert output.getvalue().endswith("\r\33[K")


def test_short_steps_show_no_progress_elsewhere() -> None:
    output = io.StringIO()
    with Console(output, Path("/")).progress(lambda: 1, 2):
        time.sleep(0.3)
    assert output.getvalue() == ""
