"""Broken messages for hypothesis: whole ones, cut, changed, repeated and joined."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def broken(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed after up to four changes; or any bytes at all."""
    data = draw(st.one_of(st.sampled_from(seeds), st.binary(max_size=200)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(data)))
        change = draw(st.sampled_from(["cut", "drop", "set", "insert", "join"]))
        if change == "cut":
            data = data[:place]
        elif change == "drop":
            data = data[:place] + data[place + draw(st.integers(1, 9)) :]
        elif change == "set":
            data = data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        elif change == "insert":
            data = data[:place] + draw(st.binary(min_size=1, max_size=12)) + data[place:]
        else:
            data += draw(st.sampled_from(seeds))
    return data
