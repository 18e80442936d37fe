"""The short form of `make fuzz`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.strategies import broken
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_messages_as_they_are(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
def test_messages_cut_anywhere(name: str) -> None:
    for seed in SEEDS[name]:
        step = max(1, len(seed) // 100)
        for end in range(0, len(seed), step):
            TARGETS[name](seed[:end])


@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_broken_messages(name: str, data: Any) -> None:
    TARGETS[name](data.draw(broken(SEEDS[name])))
