"""What must hold for any bytes at all: one function for each parser of the protocol.

Each takes bytes, and raises (`AssertionError`, or whatever the parser lets through) if something
does not hold. The unit tests call them with a few hundred inputs, `python -m tests.fuzz` with
millions.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.errors import ClipError, ProtocolError
from clickhouse_clip.udf.greeting import receive_hello
from clickhouse_clip.udf.native import BlockReader, Oversized, is_array_block

#: The longest value that a reader may hold, in these tests.
MAX_VALUE = 64

_HEADERS = 2 * (1 << 16) + 64

Outcome = tuple[int | None, str | None, bool, bytes, list[bytes | int]] | str


def native(data: bytes) -> None:
    """A block reader: the same outcome for any pieces, values only of what came, little memory."""
    whole = read_block(data, [len(data)], MAX_VALUE)
    pieces = [data[-1] + 1] if data else [1]
    for sizes in (pieces, [1], [7, 1, 300]):
        assert read_block(data, sizes, MAX_VALUE) == whole
    end_only = read_block(data, pieces, None)
    if isinstance(whole, str) or isinstance(end_only, str):
        assert whole == end_only
        return
    rows, refused, done, rest, values = whole
    assert end_only == (rows, refused, done, rest, [])
    assert data.endswith(rest)
    assert rows is not None or not values
    if rows is not None:
        assert len(values) <= rows
        assert not done or refused is not None or len(values) == rows
    for value in values:
        if isinstance(value, bytes):
            assert value in data
            assert len(value) <= MAX_VALUE
        else:
            assert value > MAX_VALUE


def read_block(data: bytes, sizes: list[int], max_value: int | None) -> Outcome:
    """Rows, refusal, whether it ended, what follows, and values or lengths; or the error."""
    reader = BlockReader(max_value)
    values: list[bytes | int] = []
    rest = b""
    position = turn = 0
    try:
        while position < len(data) and not reader.done:
            piece = data[position : position + sizes[turn % len(sizes)]]
            position, turn = position + len(piece), turn + 1
            rest = reader.feed(piece)
            values += [
                value.length if isinstance(value, Oversized) else value for value in reader.take()
            ]
            # What is held is a header, or a value that is not whole: never what a length promises.
            assert len(reader._buffer) <= (_HEADERS if reader.rows is None else MAX_VALUE + 10)
    except ProtocolError as error:
        return str(error)
    return reader.rows, reader.refused, reader.done, rest + data[position:], values


def frame_stream(data: bytes) -> None:
    """A frame reader: the same frames for any pieces, and their bytes are the stream's."""
    kinds = (frames.ROWS, frames.ERROR, frames.ALIVE)
    whole = read_frames(data, len(data) or 1, kinds)
    assert whole == read_frames(data, 1, kinds) == read_frames(data, 5, kinds)
    found, _ = whole
    assert data.startswith(b"".join(frames.encode(*frame) for frame in found))


def read_frames(
    data: bytes, size: int, kinds: tuple[int, ...]
) -> tuple[list[tuple[int, int, bytes]], bool]:
    """The frames before the end or the error, and whether there was one."""
    reader = frames.FrameReader(kinds, 1 << 12)
    found: list[tuple[int, int, bytes]] = []
    try:
        for start in range(0, len(data), size):
            for byte in data[start : start + size]:
                found += reader.feed(bytes([byte]))
            assert reader.missing > 0
    except ProtocolError:
        return found, True
    return found, False


def hello(data: bytes) -> None:
    """A greeting: a checked HELLO, or a clean refusal."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(frames.encode(frames.HELLO, 0, data[:60_000]))
        theirs.shutdown(socket.SHUT_WR)
        try:
            greeting = receive_hello(ours)
        except ClipError:
            return
    assert greeting.role in ("worker", "status", "stop")
    assert greeting.skip >= 0


def array_block(data: bytes) -> None:
    """A check of answers: whatever passes has as many bytes as its rows say."""
    rows = data[0] if data else 0
    if is_array_block(data[1:], rows):
        assert len(data) >= 1 + 8 * rows


TARGETS: dict[str, Callable[[bytes], None]] = {
    "native": native,
    "frames": frame_stream,
    "hello": hello,
    "array_block": array_block,
}
