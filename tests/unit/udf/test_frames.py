import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.errors import ProtocolError

KINDS = range(1, 8)


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2**32 - 1), st.binary(max_size=99))),
    st.integers(1, 40),
)
def test_frames_come_out_as_they_went_in(sent: list[tuple[int, int, bytes]], size: int) -> None:
    data = b"".join(frames.encode(*frame) for frame in sent)
    reader = frames.FrameReader(KINDS)
    received = []
    for start in range(0, len(data), size):
        received += reader.feed(data[start : start + size])
    assert received == sent


@pytest.mark.parametrize("data", [frames.HEADER.pack(9, 0, 0), frames.HEADER.pack(4, 0, 1 << 40)])
def test_hostile_headers_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.FrameReader(KINDS).feed(data)
