"""The short form of `make soak`."""

from __future__ import annotations

import pytest

from tests.embedded.conftest import Server
from tests.embedded.engine import Engine
from tests.soak.load import soak, table

pytestmark = pytest.mark.any_engine


def test_many_clients_for_a_while(server: Server, engine: Engine) -> None:
    result = soak(server, engine, clients=32, seconds=15)
    print(table(result))
    assert result.faults == []
    assert len(result.services) == 1
    assert result.leaks() == []
    assert len(result.queries) == 7  # every kind was asked
