"""`clip-encoder`: look at the encoder service, or end it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clickhouse_clip.udf import __version__
from clickhouse_clip.udf.errors import ClipError
from clickhouse_clip.udf.launch import request_report
from clickhouse_clip.udf.settings import Settings

_DEFAULT_SETTINGS = Path("/etc/clickhouse-server/clickhouse-clip/settings.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `clip-encoder`; 0 if a service answered, 1 on an error, 3 if none runs."""
    parser = argparse.ArgumentParser(prog="clip-encoder", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="show what the service holds and has done")
    status.add_argument("--json", action="store_true", help="print a JSON object")
    stop = commands.add_parser("stop", help="let the service finish its work and leave")
    for command in (status, stop):
        command.add_argument(
            "--settings",
            type=Path,
            default=_DEFAULT_SETTINGS,
            help="the installation's settings file (%(default)s)",
        )
    arguments = parser.parse_args(argv)
    try:
        settings = Settings.load(arguments.settings)
        report = request_report(str(settings.runtime_dir), arguments.command)
    except ClipError as error:
        print(f"clip-encoder: {error}", file=sys.stderr)
        return 1
    if report is None:
        print("no encoder service runs; the next query starts one", file=sys.stderr)
        return 3
    if arguments.command == "stop" and "version" not in report:
        print(f"encoder service {report['pid']} did not answer and was killed")
    elif arguments.command == "stop":
        print(f"encoder service {report['pid']} finishes its work and leaves")
    elif arguments.json:
        print(json.dumps(report, indent=2))
    else:
        print(_as_text(report))
    return 0


def _as_text(report: dict[str, Any]) -> str:
    rows = ", ".join(f"{name} {count:,}" for name, count in report["rows"].items())
    lines = {
        "model": f"{report['model']} ({report['weights']})",
        "bundle": report["bundle"],
        "towers": ", ".join(report["towers"]) or "none loaded yet",
        "device": report["device"],
        "precision": f"{report['precision']}, {report['threads']} threads",
        "uptime": f"{report['uptime_seconds']:,.0f} s",
        "workers": report["workers"],
        "rows": rows or "none yet",
        "cache hits": f"{report['cache_hits']:,}",
        "queue": f"{report['waiting']:,} rows",
        "bad pictures": f"{report['bad_pictures']:,}",
        "failed blocks": f"{report['failed_blocks']:,}",
        "memory": f"{report['memory_bytes'] / 2**20:,.0f} MiB",
        "process": f"{report['pid']}, version {report['version']}",
        "log": report["log_file"],
    }
    if report["unused_gpu"]:
        lines["device"] += f"; there is a GPU, but {report['unused_gpu']}"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


if __name__ == "__main__":
    sys.exit(main())
