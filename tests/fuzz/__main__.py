"""`python -m tests.fuzz --minutes 1`: the parsers of the protocol against bytes without end.

With atheris, guided by what the code covers; where it is not installed, with hypothesis.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("native", "frames", "hello", "array_block")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1, help="for each parser")
    parser.add_argument("--target", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--corpus", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seconds = max(1, round(60 * arguments.minutes))
    if arguments.target:
        return run_atheris(arguments.target, arguments.corpus, seconds)
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not installed: fuzzing with hypothesis")
        for name in NAMES:
            run_hypothesis(name, seconds)
        return 0
    # libFuzzer ends its process, so each parser gets one.
    failed = [name for name in NAMES if not fuzz_apart(name, arguments.minutes)]
    print(f"failed: {', '.join(failed)}" if failed else "nothing found")
    return 1 if failed else 0


def fuzz_apart(name: str, minutes: float) -> bool:
    from tests.fuzz.seeds import SEEDS

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]):
            (Path(corpus) / str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz", "--minutes", str(minutes)]
        run = subprocess.run(
            [*command, "--target", name, "--corpus", corpus], capture_output=True, text=True
        )
    last = [line for line in run.stderr.splitlines() if line.startswith(("#", "Done"))][-2:]
    print(f"{name}: exit {run.returncode}; {'; '.join(last)}", flush=True)
    if run.returncode:
        print(run.stdout + run.stderr, file=sys.stderr)
    return run.returncode == 0


def run_atheris(name: str, corpus: str, seconds: int) -> int:
    import atheris

    # Its imports are what it covers: nothing of ours may have been imported before.
    with atheris.instrument_imports(include=["clickhouse_clip.udf"]):
        from tests.fuzz.targets import TARGETS

    limits = [f"-max_total_time={seconds}", "-rss_limit_mb=1024", "-timeout=10", "-max_len=70000"]
    atheris.Setup([sys.argv[0], *limits, corpus], TARGETS[name])
    atheris.Fuzz()
    return 0


def run_hypothesis(name: str, seconds: int) -> None:
    from hypothesis import HealthCheck, given, settings

    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.strategies import broken
    from tests.fuzz.targets import TARGETS

    deadline = time.monotonic() + seconds
    runs = 0

    @settings(
        max_examples=2000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(broken(SEEDS[name]))
    def one(data: bytes) -> None:
        nonlocal runs
        runs += 1
        TARGETS[name](data)

    while time.monotonic() < deadline:
        one()
    print(f"{name}: {runs:,} inputs, nothing found", flush=True)


if __name__ == "__main__":
    sys.exit(main())
