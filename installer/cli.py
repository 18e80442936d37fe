"""`install-udfs`: parses, wires discovery, plan and placing together, and is all that prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from clickhouse_clip.demo import BUNDLE
from clickhouse_clip.installer.discover import Server, discover, standalone
from clickhouse_clip.installer.place import Owner, Placed, place
from clickhouse_clip.installer.plan import FOLDER, make_plan
from clickhouse_clip.udf.bundle import Manifest, load_manifest
from clickhouse_clip.udf.catalog import FUNCTIONS
from clickhouse_clip.udf.errors import ClipError, InstallError
from clickhouse_clip.udf.settings import Precision, Settings

#: Workers per function, at most. One big query borrows one for each of its threads (as many as the
#: machine has cores); what is left over is there for searches beside it.
_POOL_SIZE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if the functions are in place, 1 if not."""
    arguments = _parser().parse_args(argv)
    try:
        manifest, server, placed = _install(arguments)
    except ClipError as error:
        print(f"install-udfs: {error}", file=sys.stderr)
        return 1
    _report(manifest, server, placed)
    return 0


def _install(arguments: argparse.Namespace) -> tuple[Manifest, Server, tuple[Placed, ...]]:
    bundle = BUNDLE if arguments.bundle == "demo" else Path(arguments.bundle).absolute()
    manifest = load_manifest(bundle)
    config_dir: Path = arguments.config_dir.absolute()
    data_dir: Path = arguments.data_dir.absolute()
    fresh = arguments.standalone and not any(config_dir.glob("config.[xy]*ml"))
    if not fresh and not data_dir.is_dir():
        raise InstallError(
            f"{data_dir}: no such folder; name the server's data folder with --data-dir"
        )
    server = (standalone if fresh else discover)(config_dir, data_dir)
    settings = Settings(
        bundle=bundle,
        runtime_dir=data_dir / FOLDER / "run",
        log_file=data_dir / FOLDER / "log" / "encoder.log",
        image_roots=(server.user_files, *map(_image_root, arguments.image_root)),
        precision=arguments.precision,
    )
    plan = make_plan(
        server,
        settings,
        interpreter=Path(sys.executable),
        pool_size=arguments.pool_size,
        with_server_config=fresh,
    )
    return manifest, server, place(plan, _owner(data_dir))


def _image_root(folder: Path) -> Path:
    if not folder.is_dir():
        raise InstallError(f"--image-root {folder}: no such folder")
    return folder.absolute()


def _owner(data_dir: Path) -> Owner | None:
    """Root gives what it places to the server's user, whose data folder it is."""
    if os.geteuid() != 0 or not data_dir.exists():
        return None
    status = data_dir.stat()
    return status.st_uid, status.st_gid


def _report(manifest: Manifest, server: Server, placed: tuple[Placed, ...]) -> None:
    for entry in placed:
        print(f"{entry.change:>9}  {entry.file.path}  ({entry.file.why})")
    model = f"{manifest.model} ({manifest.weights}), {manifest.embedding_dim} dimensions"
    print(f"\nFunctions: {', '.join(function.name for function in FUNCTIONS)}")
    print(f"Model: {model}")
    if all(entry.change == "unchanged" for entry in placed):
        print("Nothing to do: everything is in place.")
        return
    print(f"Next, on the server of {server.config_dir}: start it, or where it runs already")
    print("    SYSTEM RELOAD CONFIG; SYSTEM RELOAD FUNCTIONS;")
    print("then try\n    SELECT length(encode_text('a dog'))")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="install-udfs",
        description="Put the CLIP functions into a ClickHouse server.",
    )
    parser.add_argument(
        "--bundle",
        required=True,
        metavar="DIR|demo",
        help="folder of a model, made by clip-bundle export; 'demo' is a small one for trying out",
    )
    parser.add_argument(
        "--config-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of the server's config.xml, often /etc/clickhouse-server",
    )
    parser.add_argument(
        "--data-dir",
        required=True,
        type=Path,
        metavar="DIR",
        help="the server's data folder, often /var/lib/clickhouse",
    )
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="write a minimal config.xml where there is none",
    )
    parser.add_argument(
        "--image-root",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let encode_image read here too, besides the server's user files; may be repeated",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="of the encoder; auto is bf16 where the processor computes it natively, else fp32",
    )
    parser.add_argument(
        "--pool-size",
        type=_positive,
        default=_POOL_SIZE,
        metavar="N",
        help="workers per function at most, about 10 MB each (default %(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
