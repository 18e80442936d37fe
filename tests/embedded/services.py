"""Encoder services that break on purpose: the real one, started with some of its code replaced."""

from __future__ import annotations

import pytest

from clickhouse_clip.udf import start
from tests.embedded.conftest import Server

_MAIN = """
import sys
from clickhouse_clip.udf.service import main
sys.exit(main(sys.argv[1:]))
"""


def start_broken(server: Server, patch: str) -> int:
    """Let `patch` run in a new service's process before it starts; returns its process id.

    The workers find it listening, and take it for one that they have started. When it is gone they
    start the unbroken one.
    """
    server.stop_encoder()
    with pytest.MonkeyPatch.context() as context:
        context.setattr(start, "_SERVICE", ("-IBc", patch + _MAIN))
        assert start.start_service(str(server.settings_file))
    report = server.status()
    assert report is not None
    return int(report["pid"])
