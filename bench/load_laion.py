"""Rows per second and peak memory of load-laion, beside the guide's way through pandas and CSV.

    python -m bench.load_laion --rows 200000
    python -m bench.load_laion --rows 1000000 --no-baseline

Both ways load the same generated shard into the embedded engine, each in a process of its own,
whose wall time and peak memory count; generating the files does not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.shards import DIMENSIONS, write_shard

MB = 1 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--baseline", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="load-laion-"))
    try:
        write_shard(folder / "laion", 0, arguments.rows)
        seconds, memory = measure(load, folder)
        report("load-laion", arguments.rows, seconds, memory)
        if arguments.baseline:
            csv_seconds, csv_memory = measure(write_csv, folder)
            size = (folder / "0.csv").stat().st_size / MB
            report("pandas to CSV", arguments.rows, csv_seconds, csv_memory)
            import_seconds, import_memory = measure(import_csv, folder)
            name = f"import of the CSV, {size:,.0f} MB"
            report(name, arguments.rows, import_seconds, import_memory)
            faster = (csv_seconds + import_seconds) / seconds
            less = max(csv_memory, import_memory) / memory
            print(f"load-laion is {faster:.0f} times faster, in {less:.1f} times less memory")
    finally:
        shutil.rmtree(folder)


def measure(work: Callable[[Path], None], folder: Path) -> tuple[float, float]:
    """Seconds, and peak resident memory in MB, of `work` in a new process."""
    context = multiprocessing.get_context("spawn")
    start = time.perf_counter()
    process = context.Process(target=_measured, args=(work, folder))
    process.start()
    process.join()
    seconds = time.perf_counter() - start
    if process.exitcode:
        sys.exit(f"{work.__name__} failed")
    return seconds, float((folder / "memory").read_text())


def _measured(work: Callable[[Path], None], folder: Path) -> None:
    work(folder)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "memory").write_text(str(kilobytes / 1024))


def report(name: str, rows: int, seconds: float, memory: float) -> None:
    """One line."""
    print(
        f"{name}: {rows:,} rows in {seconds:.1f} s, {rows / seconds:,.0f} rows/s, "
        f"{memory:,.0f} MB at its peak",
        flush=True,
    )


def load(folder: Path) -> None:
    """What this package does."""
    from clickhouse_clip.sql.load_cli import main as load_laion

    arguments = ["--shards", "0", "--from", f"{folder}/laion", "--dsn", f"chdb://{folder}/db"]
    if load_laion(arguments):
        os._exit(1)


def write_csv(folder: Path) -> None:
    """What the guide does before the import: vectors as numbers in text, captions unquoted."""
    import numpy as np
    import pandas as pd

    frame = pd.read_parquet(folder / "laion" / "metadata_0.parquet")
    frame = frame[["url", "caption", "NSFW", "similarity"]]
    frame["caption"] = [caption.replace("'", " ").replace('"', " ") for caption in frame["caption"]]
    for column, name in (("image_embedding", "img"), ("text_embedding", "text")):
        frame[column] = np.load(folder / "laion" / f"{name}_emb_0.npy").tolist()
    frame.to_csv(folder / "0.csv", header=False)


def import_csv(folder: Path) -> None:
    """The import of what `write_csv` wrote."""
    import clickhouse_connect

    from clickhouse_clip.sql.statements import read_statements

    client = clickhouse_connect.get_client(dsn=f"chdb://{folder}/db")
    [create] = read_statements("schema.sql")
    client.command(create, {"table": "imported", "dimensions": DIMENSIONS})
    described = client.query("DESCRIBE TABLE imported").result_rows
    columns = ", ".join(f"{name} {kind}" for name, kind, *_ in described)
    client.command(f"INSERT INTO imported SELECT * FROM file('{folder}/0.csv', CSV, '{columns}')")
    client.close()


if __name__ == "__main__":
    main()
