"""`python -m tests.soak --minutes 10`: a long soak; `make soak` runs it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests import toy
from tests.embedded.conftest import Server
from tests.soak.load import soak, table
from tests.soak.plot import plot


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--output", type=Path, default=Path("build/soak"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "server")
        server.install(toy.make_bundle(Path(folder) / "toy"), "--precision", "fp32")
        server.make_pictures()
        engine = server.start_engine()
        try:
            result = soak(server, engine, clients=arguments.clients, seconds=60 * arguments.minutes)
        finally:
            engine.close()
            server.stop_encoder()
    print(table(result))
    (arguments.output / "soak.json").write_text(json.dumps(result.to_json()) + "\n")
    plot(result, arguments.output / "soak.png")
    print(f"\n{arguments.output}/soak.json, {arguments.output}/soak.png")
    for problem in result.faults + result.leaks():
        print(f"FAULT {problem}", file=sys.stderr)
    return 1 if result.faults or result.leaks() else 0


if __name__ == "__main__":
    sys.exit(main())
