"""`load-laion`: loads LAION's shards into ClickHouse; parses, wires, and is all that prints."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing

from clickhouse_clip.sql.connect import Database
from clickhouse_clip.sql.loader import Loader
from clickhouse_clip.udf.errors import ClipError, LoadError


def main(argv: Sequence[str] | None = None) -> int:
    """Load the shards; 0 if all of them are in the table, 1 if not."""
    arguments = _parser().parse_args(argv)
    try:
        with closing(Database(arguments.dsn, arguments.config_file)) as database:
            loader = Loader(database, getattr(arguments, "from"), arguments.table)
            loader.check()
            failed = _load(loader, arguments.shards)
    except ClipError as error:
        print(f"load-laion: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("load-laion: interrupted; run it again to go on", file=sys.stderr)
        return 130
    total = len(arguments.shards)
    if failed:
        print(
            f"load-laion: {len(failed)} of {total} shards failed: {', '.join(map(str, failed))}; "
            "run it again to load what is missing",
            file=sys.stderr,
        )
        return 1
    print(f"All {total} shards are in {arguments.table}.")
    return 0


def _load(loader: Loader, shards: Sequence[int]) -> list[int]:
    """Load one after another; returns those that failed."""
    failed = []
    rows = 0
    start = time.perf_counter()
    for number, shard in enumerate(shards, 1):
        try:
            loaded = loader.load(shard)
        except LoadError as error:
            print(f"load-laion: shard {shard}: {error}", file=sys.stderr, flush=True)
            failed.append(shard)
            continue
        if loaded.before:
            print(f"shard {shard}: {loaded.rows:,} rows, loaded before", flush=True)
            continue
        rows += loaded.rows
        elapsed = time.perf_counter() - start
        print(
            f"shard {shard}: {loaded.rows:,} rows in {loaded.seconds:.1f} s"
            f"; {number} of {len(shards)}, {rows:,} rows in all"
            f", {_duration(elapsed / number * (len(shards) - number))} left",
            flush=True,
        )
    return failed


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _shards(text: str) -> tuple[int, ...]:
    """`0-2,7` as 0, 1, 2, 7."""
    shards: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"{text}: not numbers and ranges such as 0-2,7")
        shards += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(shards))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="load-laion",
        description="Load shards of LAION into ClickHouse, straight from .npy and Parquet. A shard "
        "is loaded wholly or not at all; what is loaded already stays.",
    )
    parser.add_argument(
        "--shards", type=_shards, required=True, metavar="N-M", help="such as 0-409 or 0-2,7"
    )
    parser.add_argument(
        "--from",
        required=True,
        metavar="DIR|URL",
        help="where img_emb_N.npy, text_emb_N.npy and metadata_N.parquet are: a folder that the "
        "server may read (below its user files), or http://, https:// or s3://",
    )
    parser.add_argument(
        "--table", default="laion", help="made with schema.sql if there is none (%(default)s)"
    )
    parser.add_argument(
        "--dsn",
        default="http://localhost:8123",
        help="clickhouse-connect's: http(s)://user:password@host:port/database, or "
        "chdb:///folder for the embedded engine (%(default)s)",
    )
    parser.add_argument("--config-file", metavar="FILE", help="of the embedded engine")
    return parser


if __name__ == "__main__":
    sys.exit(main())
