"""Thousands of bad pictures: an error or a picture, and never a crash, a hang or much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_picture_crashes_hangs_or_takes_memory() -> None:
    """See bad_pictures/corpus.py for the cases, bad_pictures/measure.py for what is asserted."""
    # In a process of its own: a crash would take the tests with it, and its memory is limited.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.udf.bad_pictures.measure"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",  # native libraries write what they think of a file
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert sum(report["kinds"].values()) >= 3000
    assert min(report["kinds"].values()) > 0
