"""`python -m clickhouse_clip.demo`: installs, starts the engine, gives the tour, draws it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path, PurePath

from clickhouse_clip.demo import BUNDLE, PICTURES
from clickhouse_clip.demo.console import Console
from clickhouse_clip.demo.grid import Hit, Row, draw
from clickhouse_clip.demo.sandbox import Engine, Sandbox, command_line
from clickhouse_clip.demo.tour import FOUND, Found, Subject, Tour, list_pictures
from clickhouse_clip.udf.bundle import load_manifest
from clickhouse_clip.udf.errors import ClipError

_EMOJI_QUERIES = (
    "dog",
    "red fruit",
    "something to eat with",
    "happy face",
    "vehicle that flies",
    "sea animal",
    "music",
    "bad weather",
)
_EMOJI_EXAMPLES = ("dog-face.webp", "guitar.webp", "rocket.webp")
_EMOJI_LABELS = (
    "animal",
    "food",
    "vehicle",
    "face",
    "plant",
    "musical instrument",
    "sport",
    "flag",
)

_PHOTO_QUERIES = (
    "a photo of a dog",
    "people smiling",
    "food on a table",
    "the sea",
    "a city at night",
    "a car",
    "flowers",
    "snow",
)
_PHOTO_LABELS = (
    "a photo of people",
    "a photo of an animal",
    "a photo of food",
    "a photo of a building",
    "a photo of a landscape",
    "a photo of a vehicle",
    "a screenshot or a document",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Give the tour; 0 if all of it worked."""
    arguments = _parser().parse_args(argv)
    console = Console(sys.stdout)
    try:
        picture = _show(arguments, console)
    except ClipError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    console.heading(f"Look at {picture}")
    return 0


def _show(arguments: argparse.Namespace, console: Console) -> Path:
    output: Path = arguments.output.absolute()
    subject = _subject(arguments.pictures, arguments.query)
    manifest = load_manifest(BUNDLE if arguments.bundle == "demo" else Path(arguments.bundle))
    sandbox = Sandbox(output / "server", arguments.bundle, subject.pictures)
    console.heading("Install the functions into a scratch server")
    console.command(command_line(sandbox.arguments))
    start = time.perf_counter()
    console.text(sandbox.install())
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
        f"{manifest.model} ({manifest.weights}), {len(list_pictures(subject.pictures)):,} pictures",
    )
    sheet.save(output / "search.png", optimize=True)
    return output / "search.png"


def _subject(pictures: Path | None, queries: Sequence[str]) -> Subject:
    """What to show: the emoji of the package, or a person's own pictures."""
    own = pictures is not None
    folder = pictures.resolve() if pictures is not None else PICTURES
    names = list_pictures(folder)
    if not names:
        raise ClipError(f"{folder}: holds no pictures")
    return Subject(
        pictures=folder,
        trusted=not own,
        queries=tuple(queries) or (_PHOTO_QUERIES if own else _EMOJI_QUERIES),
        # Of a person's pictures, nobody knows which: some from all over the folder.
        examples=tuple(names[:: -(-len(names) // 3)]) if own else _EMOJI_EXAMPLES,
        labels=_PHOTO_LABELS if own else _EMOJI_LABELS,
    )


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
