"""Inputs to begin with: whole messages, from which a fuzzer makes broken ones."""

from __future__ import annotations

import json
import struct

from clickhouse_clip.udf import frames
from clickhouse_clip.udf.native import array_block_header
from tests.native_blocks import string, varuint


def block(type_name: bytes, rows: int, values: bytes, columns: int = 1) -> bytes:
    header = varuint(columns) + varuint(rows) + string(b"text") + string(type_name)
    return b"%d\n" % rows + header + values


BLOCKS = [
    block(b"String", 3, string(b"one") + string(b"") + string(b"x" * 300)),
    block(b"Nullable(String)", 2, b"\0\0" + string(b"a") + string(b"b")),
    block(b"Nullable(String)", 2, b"\0\1" + string(b"a") + string(b"")),
    block(b"FixedString(5)", 2, b"ab\0\0\0hello"),
    block(b"FixedString(70)", 2, bytes(140)),
    block(b"Nullable(FixedString(2))", 2, b"\0\0abcd"),
    block(b"UInt64", 2, bytes(16)),
    block(b"Decimal(9, 2)", 2, bytes(8)),
    block(b"DateTime64(3, 'UTC')", 1, bytes(8)),
    block(b"String", 0, b""),
    block(b"String", 1, string(b"next")) + block(b"String", 1, string(b"block")),
    # Hostile: lengths and counts that nothing follows, and headers without end.
    block(b"String", 2, varuint(1 << 62) + b"x"),
    block(b"String", (1 << 32) - 1, string(b"one")),
    block(b"String", 1 << 60, string(b"one")),
    block(b"Nullable(UInt8)", (1 << 32) - 1, bytes(100)),
    block(b"FixedString(16777215)", 2, bytes(100)),
    block(b"FixedString(99999999999999999999)", 1, b"x"),
    block(b"FixedString(0)", 1, b"x"),
    block(b"FixedString(-1)", 1, b"x"),
    block(b"FixedString()", 1, b"x"),
    block(b"Decimal(x)", 1, b"x"),
    block(b"Nullable(", 1, b"x"),
    block(b"Array(" * 200, 1, b"x"),
    block(b"String", 1, b"x", columns=1 << 40),
    block(b"x" * 2000, 1, b"x"),
    b"1\n\x01\x01" + varuint(1 << 30) + b"name",
    b"1\n" + b"\xff" * 12,
    b"99999999999999999999\n\x01",
    b"-1\n\x01\x01",
    b"\n",
]

_HELLO = {
    "role": "worker", "protocol": 1, "version": "0.1.0", "settings": "0" * 64,
    "function": "encode_text", "skip": 0,
}  # fmt: skip

SEEDS: dict[str, list[bytes]] = {
    "native": BLOCKS,
    "frames": [
        frames.encode(frames.ROWS, 2, b"x" * 100) + frames.encode(frames.ALIVE),
        frames.encode(frames.ERROR, 0, b"row 2: no") + frames.encode(frames.HELLO),
        frames.HEADER.pack(frames.ROWS, (1 << 32) - 1, (1 << 64) - 1),
        b"",
    ],
    "hello": [
        json.dumps(_HELLO).encode(),
        json.dumps({**_HELLO, "skip": -1}).encode(),
        b'{"role": "status", "version": "0.1.0"}',
        b"[" * 1000,
        b'{"role": ' * 500,
    ],
    "array_block": [
        b"\x02" + array_block_header(2) + struct.pack("<2Q4f", 2, 4, 1, 2, 3, 4),
        b"\x01" + array_block_header(1) + struct.pack("<Q", 1 << 63),
    ],
}
