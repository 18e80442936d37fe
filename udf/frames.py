"""Messages between a worker and the encoder service.

A worker opens with one HELLO and then passes on what ClickHouse writes, byte for byte. The service
answers in frames: kind (uint8), rows (uint32), length (uint64), little-endian, then the payload.

HELLO is a frame too; its payload, like that of WELCOME and REPORT, is a JSON object.
"""

from __future__ import annotations

import struct

from clickhouse_clip.udf.errors import ProtocolError

#: Raised when a worker of one version could not talk to a service of another.
PROTOCOL = 1

#: Opens a connection: protocol, version, settings' digest, role, function, rows to skip.
HELLO = 1
#: The service accepts the worker.
WELCOME = 2
#: The service gives way to a newer one; start that, and connect again.
RETIRED = 3
#: `rows` answered; the payload is a Native block to be written to stdout as it is.
ROWS = 4
#: The block fails; the payload is the message, and all rows not yet answered are owed.
ERROR = 5
#: The answer to a `status` or `stop` role.
REPORT = 6

HEADER = struct.Struct("<BIQ")

#: The largest answer the service makes is a window of embeddings, far below this.
_PAYLOAD_MAX = 1 << 30


def encode(kind: int, rows: int = 0, payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    return HEADER.pack(kind, rows, len(payload)) + payload


class FrameReader:
    """Cuts frames out of bytes as they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """The frames (kind, rows, payload) that are complete with `data`."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            kind, rows, length = HEADER.unpack_from(self._buffer)
            if not HELLO <= kind <= REPORT or length > _PAYLOAD_MAX:
                raise ProtocolError(f"a frame of kind {kind} and {length} bytes")
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, rows, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return frames
