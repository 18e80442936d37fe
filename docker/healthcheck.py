"""The image's HEALTHCHECK: whether the server answers, and encode_text with it."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

_SQL = b"SELECT length(encode_text('healthy'))"


def _password() -> str:
    file = os.environ.get("CLICKHOUSE_PASSWORD_FILE")
    return Path(file).read_text().strip() if file else os.environ.get("CLICKHOUSE_PASSWORD", "")


def main() -> int:
    """Ask the server of this container; 0 if it answers, 1 with the reason on stdout if not."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{os.environ.get('CLICKHOUSE_PORT', '8123')}/",
        data=_SQL,
        headers={
            "X-ClickHouse-User": os.environ.get("CLICKHOUSE_USER") or "default",
            "X-ClickHouse-Key": _password(),
        },
    )
    try:
        # A proxy that the container is told of is for other hosts.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as answer:
            print(f"encode_text: {int(answer.read())} dimensions")
    except urllib.error.HTTPError as error:
        print(error.read().decode(errors="replace").strip())
        return 1
    except OSError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
