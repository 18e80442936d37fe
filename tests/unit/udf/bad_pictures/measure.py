"""Opens the whole corpus in this process, which may not grow, hang, read, write or start anything.

Prints one JSON object: cases by kind, how many were pictures, the peak of memory, and what failed.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from clickhouse_clip.udf.bundle import ImageSpec
from clickhouse_clip.udf.errors import PictureError
from clickhouse_clip.udf.image import open_picture, preprocess
from tests.unit.udf.bad_pictures.corpus import MAX_PIXELS, Case, corpus

#: A case takes some milliseconds; far beyond this it hangs.
_HANG_SECONDS = 60

#: Address space beyond what there is at the start: a hundred times what any case may touch.
_ADDRESS_SPACE = 2 << 30

_SPEC = ImageSpec(24, 24, (0.0,) * 3, (1.0,) * 3, "bicubic", "shortest", 0)  # type: ignore[arg-type]

#: What decoding has no business with (see sys.audit).
_FORBIDDEN = ("open", "subprocess", "os.", "socket", "exec", "shutil", "tempfile", "ctypes")


def memory(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def failure(case: Case) -> str | None:
    """What is wrong with what comes of a case; None if nothing is."""
    try:
        picture = open_picture(case.data, max_pixels=MAX_PIXELS)
        pixels = preprocess(picture, _SPEC)
    except PictureError as error:
        reason = str(error)
        if case.expected == "picture":
            return f"refused: {reason}"
        if not reason.isprintable() or len(reason) > 160 or " at 0x" in reason:
            return f"a message that is not fit to be shown: {reason!r}"
        return None
    except BaseException as error:
        return f"raised {type(error).__name__}: {error}"
    if case.expected == "error":
        return f"gave a picture of {picture.size}"
    if picture.mode != "RGB" or pixels.shape != (24, 24, 3):
        return f"gave {picture.mode} and {pixels.shape}"
    if case.whole is not None:
        whole = open_picture(case.whole, max_pixels=MAX_PIXELS)
        if picture.size != whole.size or (np.asarray(picture) != np.asarray(whole)).any():
            return "gave another picture than the whole file"
    return None


def main() -> None:
    """Measure."""
    cases = list(corpus())
    for case in cases:
        if case.whole is not None:
            open_picture(case.whole, max_pixels=MAX_PIXELS)  # loads what is loaded lazily
    forbidden: list[str] = []
    armed = False

    def audit(event: str, _: tuple[Any, ...]) -> None:
        if armed and event.startswith(_FORBIDDEN):
            forbidden.append(event)

    sys.addaudithook(audit)
    size = memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (size + _ADDRESS_SPACE,) * 2)
    kinds: Counter[str] = Counter()
    failures, peak = [], 0
    for case in cases:
        kinds[case.kind] += 1
        Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
        before = memory("VmRSS")
        faulthandler.dump_traceback_later(_HANG_SECONDS, exit=True)
        armed = True
        found = failure(case)
        armed = False
        faulthandler.cancel_dump_traceback_later()
        grown = memory("VmHWM") - before
        peak = max(peak, grown)
        # Three times the file: Pillow copies what it decompresses and what it joins.
        allowed = 20 * MAX_PIXELS + 3 * len(case.data) + case.more + (8 << 20)
        if found is None and grown > allowed:
            found = f"took {grown >> 20} MB, {allowed >> 20} are allowed"
        if found is None and forbidden:
            found = f"did {sorted(set(forbidden))}"
        forbidden.clear()
        if found is not None:
            failures.append(f"{case.kind}, {case.name}: {found}")
    print(json.dumps({"kinds": kinds, "peak": peak, "failures": failures}))


if __name__ == "__main__":
    main()
