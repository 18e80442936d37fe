"""`install-udfs`: parses and wires; the commands decide, and the report prints.

Exit codes, also for Ansible: 0 done, nothing to do, or nothing wrong; 1 an error, or something that
does not work; 2 with --dry-run: there is something to do.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from clickhouse_clip.installer.commands import check, remove
from clickhouse_clip.installer.discover import Folders
from clickhouse_clip.installer.install import Installation
from clickhouse_clip.installer.model import Source
from clickhouse_clip.installer.report import Mode, Outcome, Report
from clickhouse_clip.installer.request import Request
from clickhouse_clip.installer.root import Root
from clickhouse_clip.installer.running import Running
from clickhouse_clip.installer.transaction import describe
from clickhouse_clip.udf import __version__
from clickhouse_clip.udf.errors import ClipError, InstallError
from clickhouse_clip.udf.settings import Precision

_CONFIG_DIR = Path("/etc/clickhouse-server")

_WOULD_CHANGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    arguments = _parser().parse_args(argv)
    mode: Mode = "json" if arguments.json else "quiet" if arguments.quiet else "text"
    report = Report(mode)
    # As Ctrl-C: what has begun is undone on the way out.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        outcome = _run(arguments, report)
    except ClipError as error:
        report.failure(str(error))
        return 1
    except OSError as error:
        report.failure(describe(error))
        return 1
    except KeyboardInterrupt:
        report.failure("interrupted; everything is as it was before")
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    report.outcome(outcome, diffs=arguments.dry_run)
    if outcome.wrong:
        return 1
    return _WOULD_CHANGE if outcome.status == "would-change" else 0


def _run(arguments: argparse.Namespace, report: Report) -> Outcome:
    request = _request(arguments)
    running = Running(arguments.host, arguments.port, arguments.user, arguments.password)
    if arguments.check:
        return check(request, running, report.progress)
    if arguments.uninstall:
        return remove(request, running, dry_run=arguments.dry_run)
    installation = Installation(request, running, report.progress)
    outcome = installation.run(dry_run=arguments.dry_run, try_first=arguments.preflight)
    outcome.next_steps = _next_steps(outcome, arguments.config_dir)
    return outcome


def _next_steps(outcome: Outcome, config_dir: Path) -> list[str]:
    if outcome.status == "unchanged":
        return ["Nothing to do: everything is in place."]
    verified = any(finding.level == "ok" for finding in outcome.findings)
    if outcome.status != "installed" or verified:
        return []
    return [
        f"Next, on the server of {config_dir}: start it, or where it runs already",
        "    SYSTEM RELOAD CONFIG; SYSTEM RELOAD FUNCTIONS;",
        f"then try\n    SELECT length({outcome.functions[0]}('a dog'))",
    ]


def _request(arguments: argparse.Namespace) -> Request:
    if (arguments.pretrained or arguments.checkpoint) and not arguments.model:
        raise InstallError("--pretrained and --checkpoint need --model, as ViT-B-32")
    if arguments.model and not (arguments.pretrained or arguments.checkpoint):
        raise InstallError("--model needs its weights: --pretrained TAG, or --checkpoint FILE")
    source = None
    if arguments.model:
        source = Source(arguments.model, arguments.pretrained, arguments.checkpoint)
    root = Root(None if arguments.root is None else arguments.root.absolute())
    if root.directory is not None and not root.directory.is_dir():
        raise InstallError(f"--root {root.directory}: no such folder")

    def seen(path: Path | None) -> Path | None:
        return None if path is None else root.seen(path.absolute())

    return Request(
        config_dir=root.seen(arguments.config_dir.absolute()),
        named=Folders(
            seen(arguments.data_dir),
            seen(arguments.user_scripts_dir),
            seen(arguments.user_files_dir),
        ),
        root=root,
        standalone=arguments.standalone,
        bundle=arguments.bundle,
        source=source,
        image_roots=tuple(root.seen(path.absolute()) for path in arguments.image_root),
        precision=arguments.precision,
        pool_size=arguments.pool_size,
        prefix=arguments.prefix,
        warmup=arguments.warmup,
        python=arguments.python,
        force=arguments.force,
    )


class _Parser(argparse.ArgumentParser):
    """Leaves with 1: argparse's own 2 would say that a dry run found something to do."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.format_usage()}{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="install-udfs",
        description="Put the CLIP functions into a ClickHouse server. Asks nothing; run again, it "
        "changes only what has to change.",
        epilog="Exit codes: 0 done or nothing to do; 1 an error, or something does not work; "
        "2 with --dry-run: there is something to do.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    what = parser.add_argument_group(
        "what to do, instead of installing"
    ).add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say what is wrong, and its remedy")
    what.add_argument("--uninstall", action="store_true", help="leave the server as it was before")
    parser.add_argument(
        "--dry-run", action="store_true", help="show every change and make none; 2 if there is any"
    )
    parser.add_argument(
        "--preflight",
        action="store_true",
        help="call the functions on an embedded engine first; if one fails, change nothing",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace or remove what was edited since it was placed"
    )
    _add_model(parser.add_argument_group("the model"))
    _add_server(parser.add_argument_group("the server"))
    _add_functions(parser.add_argument_group("the functions; as they were, if installed before"))
    _add_connection(parser.add_argument_group("the running server, over HTTP; else CLICKHOUSE_*"))
    output = parser.add_argument_group("output").add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_model(group: argparse._ArgumentGroup) -> None:
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--bundle",
        metavar="DIR|demo",
        help="folder made by clip-bundle export; 'demo' is a small model for trying out",
    )
    choice.add_argument(
        "--model", metavar="NAME", help="export this model of open_clip now; needs torch"
    )
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", metavar="TAG", help="its weights, as openai")
    weights.add_argument("--checkpoint", metavar="FILE", type=Path, help="its weights, a file")


def _add_server(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--config-dir",
        type=Path,
        default=_CONFIG_DIR,
        metavar="DIR",
        help="folder of config.xml or config.yaml (default %(default)s)",
    )
    found = "; found in the configuration unless that takes it from elsewhere"
    for name, what in (
        ("--data-dir", "data folder"),
        ("--user-scripts-dir", "user_scripts_path"),
        ("--user-files-dir", "user_files_path"),
    ):
        group.add_argument(name, type=Path, metavar="DIR", help=f"the server's {what}{found}")
    group.add_argument(
        "--standalone", action="store_true", help="write a minimal config.xml where there is none"
    )
    group.add_argument(
        "--root", type=Path, metavar="DIR", help="an image's tree that will be /; write below it"
    )
    group.add_argument(
        "--python", type=Path, metavar="FILE", help="with --root: Python as the image will see it"
    )


def _add_functions(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--image-root",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="let encode_image read here too, besides the server's user files; may be repeated",
    )
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="of the encoder; auto is bf16 where the processor computes it natively, else fp32",
    )
    group.add_argument(
        "--pool-size",
        type=_positive,
        metavar="N",
        help="workers per function at most, about 10 MB each (default 32)",
    )
    group.add_argument(
        "--prefix", metavar="NAME_", help="call the functions NAME_encode_text and so on"
    )
    group.add_argument(
        "--warmup",
        action=argparse.BooleanOptionalAction,
        help="load the model when the server starts (startup_scripts)",
    )


def _add_connection(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--host", help="default localhost")
    group.add_argument("--port", type=_positive, help="HTTP port; default: the configuration's")
    group.add_argument("--user", help="default 'default'")
    group.add_argument("--password", help="better in CLICKHOUSE_PASSWORD, which ps does not show")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
