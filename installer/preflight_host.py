"""The process of `preflight` that holds the engine: a JSON request on stdin, findings on stdout."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

from clickhouse_clip.installer.record import Options
from clickhouse_clip.installer.verify import Client, Expected, verify


def main() -> int:
    """Open the engine, ask it, and answer; an engine that does not open leaves with its message."""
    request = json.load(sys.stdin)
    # The engine may print: keep the way back for the answer alone.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import clickhouse_connect

    try:
        client = clickhouse_connect.get_client(
            interface="chdb",
            path=request["path"],
            chdb_options={"config-file": request["config"]},
        )
    except Exception as error:
        message = str(error).partition(", Stack trace")[0]
        print(" ".join(message.split()), file=sys.stderr)
        return 1
    findings = verify(
        cast("Client", client),
        Options(**request["options"]),
        Expected(**request["expected"]),
        Path(request["pictures"]),
        None,
    )
    print(json.dumps([asdict(finding) for finding in findings]), file=channel, flush=True)
    client.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
