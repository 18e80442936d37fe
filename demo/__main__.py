"""`python -m clickhouse_clip.demo`: installs, starts the engine, gives the tour, draws it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

from clickhouse_clip.demo import BUNDLE
from clickhouse_clip.demo.console import Console
from clickhouse_clip.demo.engine import Engine
from clickhouse_clip.demo.grid import Hit, Row, draw
from clickhouse_clip.demo.sandbox import Sandbox
from clickhouse_clip.demo.subjects import emoji, photos
from clickhouse_clip.demo.tour import FOUND, Found, Tour
from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.errors import ClipError


def main(argv: Sequence[str] | None = None) -> int:
    """Give the tour; 0 if all of it worked."""
    arguments = _parser().parse_args(argv)
    console = Console(sys.stdout, Path.cwd())
    try:
        picture = _show(arguments, console)
    except ClipError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.heading(f"What was found: {picture}")
    return 0


def _show(arguments: argparse.Namespace, console: Console) -> Path:
    output: Path = arguments.output.absolute()
    subject = (
        photos(arguments.pictures, arguments.query)
        if arguments.pictures
        else emoji(arguments.query)
    )
    manifest = load_manifest(BUNDLE if arguments.bundle == "demo" else Path(arguments.bundle))
    sandbox = Sandbox(output / "server", arguments.bundle, subject.pictures)
    console.heading("Install the functions into a scratch server")
    console.command(" ".join(["install-udfs", *sandbox.arguments]))
    start = time.perf_counter()
    placed, _, _ = sandbox.install().partition("\n\n")
    console.text(placed)
    console.outcome("", time.perf_counter() - start)
    engine = Engine(sandbox)
    try:
        found = Tour(engine, console, sandbox.rows_encoded).run(subject, manifest.embedding_dim)
    finally:
        engine.close()
        sandbox.stop_encoder()
    sheet = draw(
        [_row(entry, subject.pictures) for entry in found],
        "Found in ClickHouse",
        "ORDER BY cosineDistance(image_embedding, encode_text('…')) LIMIT "
        f"{FOUND}, and by picture with encode_image('…'); the number is the cosine similarity",
        f"{manifest.model} ({manifest.weights}), encoded and searched in ClickHouse",
    )
    sheet.save(output / "search.png", optimize=True)
    return output / "search.png"


def _row(found: Found, folder: Path) -> Row:
    hits = tuple(
        Hit(folder / name, _title(name), score)
        for name, score in found.pictures
        # A picture finds itself first, which is no news.
        if not (found.by_picture and name == found.query)
    )[:FOUND]
    if found.by_picture:
        return Row(_title(found.query), folder / found.query, hits)
    return Row(found.query, None, hits)


def _title(name: str) -> str:
    return PurePath(name).stem.replace("-", " ")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m clickhouse_clip.demo",
        description="Put the functions into a scratch ClickHouse, and search pictures with them.",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="your own pictures")
    parser.add_argument(
        "--bundle",
        default="demo",
        metavar="DIR",
        help="a model made by clip-bundle export; by default a small one, for emoji only",
    )
    parser.add_argument(
        "--query",
        action="append",
        default=[],
        metavar="TEXT",
        help="search for this instead of the usual; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo-out"),
        metavar="DIR",
        help="for the scratch server and search.png (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
