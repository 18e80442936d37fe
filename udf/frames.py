"""Messages between a worker and the encoder service.

A worker opens with one HELLO and then passes on what ClickHouse writes, byte for byte. The service
answers in frames: kind (uint8), rows (uint32), length (uint64), little-endian, then the payload.
While it has a block to answer it is never silent for long: see ALIVE.

HELLO is a frame too; its payload, like that of REPORT, is a JSON object.
"""

from __future__ import annotations

import struct
from collections.abc import Container

from clickhouse_clip.udf.errors import ProtocolError

#: Raised when a worker of one version could not talk to a service of another.
PROTOCOL = 1

#: Opens a connection: protocol, version, settings' digest, role, function, rows to skip.
HELLO = 1
#: The service accepts the worker.
WELCOME = 2
#: The service gives way to a newer one; start that, and connect again. Instead of WELCOME, or of
#: rows: what has not been answered is to be sent again.
RETIRED = 3
#: `rows` answered; the payload is a Native block to be written to stdout as it is.
ROWS = 4
#: The block fails; the payload is the message, and all rows not yet answered are owed.
ERROR = 5
#: The answer to a `status` or `stop` role.
REPORT = 6
#: The service runs, and the block under way is still being worked on. Empty.
ALIVE = 7

HEADER = struct.Struct("<BIQ")

#: Seconds between two ALIVE frames.
ALIVE_SECONDS = 5.0

#: The largest answer the service makes is a window of embeddings, far below this.
_PAYLOAD_MAX = 1 << 28


def encode(kind: int, rows: int = 0, payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    return HEADER.pack(kind, rows, len(payload)) + payload


class FrameReader:
    """Cuts frames out of bytes as they arrive, with payloads of at most `payload_max` bytes.

    `kinds` are those that the peer may send. Any other frame raises `ProtocolError`; the stream
    cannot be used any further then.
    """

    def __init__(self, kinds: Container[int], payload_max: int = _PAYLOAD_MAX) -> None:
        self._kinds = kinds
        self._payload_max = payload_max
        self._buffer = bytearray()

    @property
    def missing(self) -> int:
        """Bytes that the next frame at least still takes."""
        have = len(self._buffer)
        if have < HEADER.size:
            return HEADER.size - have
        return HEADER.size + int(HEADER.unpack_from(self._buffer)[2]) - have

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames (kind, rows, payload) that are complete with `data`."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            kind, rows, length = HEADER.unpack_from(self._buffer)
            if kind not in self._kinds or length > self._payload_max:
                raise ProtocolError(f"a frame of kind {kind} and {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, rows, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames
