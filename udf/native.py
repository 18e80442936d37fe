"""Native blocks, as ClickHouse exchanges them with a worker: bytes in, bytes out.

What comes in: with `send_chunk_header` a line `N\\n`, then one block of one column:

    varuint columns (1) | varuint rows | string name | string type | values

where a string is a varuint length and its bytes. Engines before 26 send the type that the caller
passed, not the declared one, so values are read by the type in the header. What goes out is a block
of one `Array(Float32)` column: cumulative little-endian uint64 offsets, then the floats.

Standard library only, and few imports: workers start with this module.
"""

from __future__ import annotations

from collections.abc import Iterator

from clickhouse_clip.udf.errors import ProtocolError

RETURN_NAME = "embedding"
RETURN_TYPE = "Array(Float32)"

#: More digits than any row count has; a longer "header" is not a chunk header.
_CHUNK_HEADER_MAX = 20

#: A name or a type longer than this is not what ClickHouse sends for one argument.
_HEADER_STRING_MAX = 1 << 16

#: More rows than this do not fit into a frame, nor into any block that ClickHouse makes.
_ROWS_MAX = (1 << 32) - 1

#: ClickHouse's own limit (`MAX_FIXEDSTRING_SIZE`).
_FIXED_STRING_MAX = 0xFFFFFF

_ZEROS = bytes(1 << 16)

#: Of a type's name that is shown in an error: an Enum's may be long.
_SHOWN = 200

#: Bytes per value of the types that are refused but can be read past, so that the worker stays
#: usable (https://clickhouse.com/docs/native-protocol/columns).
_WIDTHS = {
    "Bool": 1, "Int8": 1, "UInt8": 1, "Int16": 2, "UInt16": 2, "BFloat16": 2, "Date": 2,
    "Int32": 4, "UInt32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4,
    "Int64": 8, "UInt64": 8, "Float64": 8, "DateTime64": 8,
    "Int128": 16, "UInt128": 16, "UUID": 16, "IPv6": 16, "Int256": 32, "UInt256": 32,
    "Enum8": 1, "Enum16": 2,
}  # fmt: skip


class Oversized:
    """Stands for a value that was read past because it is longer than `max_value` bytes."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length


class BlockReader:
    """Reads one Native block from bytes as they arrive, in pieces of any size.

    `max_value`: longest value to keep, in bytes; a longer one becomes `Oversized` and is never
    held. None keeps no values at all: the reader then only finds the block's end.

    `rows` is None until the header has been read. `refused` says why the block's type cannot be
    taken; such a block is read to its end all the same. `done` is true once the last byte is in.
    """

    def __init__(self, max_value: int | None) -> None:
        self.rows: int | None = None
        self.refused: str | None = None
        self.done = False
        self._max_value = max_value
        self._buffer = bytearray()
        self._values: list[bytes | Oversized] = []
        self._skip = 0  # bytes to drop before anything else is looked at
        self._nulls = 0  # of the null map, bytes still to read
        self._width = 0  # bytes of each value; 0: strings with their lengths
        self._left = 0  # values still to read

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take the next bytes; returns those that follow the block's end.

        Raises `ProtocolError` on bytes that are no block, or of a type whose size is unknown; the
        stream cannot be used any further then.
        """
        self._buffer += data
        if self.rows is None and not self._read_header():
            return b""
        while not self.done:
            if self._skip:
                dropped = min(self._skip, len(self._buffer))
                del self._buffer[:dropped]
                self._skip -= dropped
                if self._skip:
                    return b""
            if self._nulls and not self._read_null_map():
                return b""
            if not self._left:
                self.done = True
            elif not (self._read_fixed() if self._width else self._read_strings()):
                return b""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def take(self) -> list[bytes | Oversized]:
        """The values completed since the last call, in order."""
        values, self._values = self._values, []
        return values

    def _read_header(self) -> bool:
        end = self._buffer.find(b"\n", 0, _CHUNK_HEADER_MAX + 1)
        if end < 0:
            if len(self._buffer) > _CHUNK_HEADER_MAX:
                raise ProtocolError("the input has no chunk header; set send_chunk_header to 1")
            return False
        announced = bytes(self._buffer[:end])
        if not announced.isdigit():
            raise ProtocolError(f"the chunk header is no number: {announced!r}")
        fields = self._header_fields(end + 1)
        if fields is None:
            return False
        columns, rows, type_name, position = fields
        if columns != 1 or rows != int(announced):
            raise ProtocolError(
                f"a block of {columns} columns and {rows} rows, announced as 1 and {int(announced)}"
            )
        if rows > _ROWS_MAX:
            raise ProtocolError(f"a block of {rows} rows")
        self._set_type(type_name, rows)
        del self._buffer[:position]
        self.rows = self._left = rows
        return True

    def _header_fields(self, position: int) -> tuple[int, int, str, int] | None:
        numbers = []
        for _ in range(2):
            number = _varuint(self._buffer, position)
            if number is None:
                return None
            numbers.append(number[0])
            position = number[1]
        strings = []
        for _ in range(2):
            number = _varuint(self._buffer, position)
            if number is None:
                return None
            length, position = number
            if length > _HEADER_STRING_MAX:
                raise ProtocolError(f"a column header of {length} bytes")
            if position + length > len(self._buffer):
                return None
            strings.append(bytes(self._buffer[position : position + length]))
            position += length
        return numbers[0], numbers[1], strings[1].decode("utf-8", "replace"), position

    def _set_type(self, type_name: str, rows: int) -> None:
        inner = type_name
        if inner.startswith("Nullable("):
            inner = inner[len("Nullable(") : -1]
            self._nulls = rows
        if inner == "String":
            return
        width = _fixed_string_width(inner)
        if width is None:
            shown = type_name if len(type_name) <= _SHOWN else type_name[:_SHOWN] + "…"
            self.refused = f"got {shown}, use toString()"
            width = _width_of(inner)
        if width is None:
            raise ProtocolError(f"the argument must be a String, {self.refused}")
        self._width = width

    def _read_null_map(self) -> bool:
        """Read what is there of it; False if more bytes are needed first."""
        seen = min(self._nulls, len(self._buffer))
        place = self._buffer.find(1, 0, seen)
        if place >= 0 and self.refused is None:
            row = self._left - self._nulls + place + 1
            self.refused = (
                f"row {row} of {self.rows} is NULL; filter such rows out, or use ifNull()"
            )
        del self._buffer[:seen]
        self._nulls -= seen
        return self._nulls == 0

    def _read_fixed(self) -> bool:
        """Read what is there; False if more bytes are needed first."""
        width = self._width
        if self._max_value is None or self.refused is not None:
            self._skip, self._left = self._left * width, 0
            return True
        if width > self._max_value:
            self._values.append(Oversized(width))
            self._skip, self._left = width, self._left - 1
            return True
        count = min(self._left, len(self._buffer) // width)
        values = bytes(self._buffer[: count * width])
        # ClickHouse pads FixedString with zero bytes.
        self._values += [
            values[start : start + width].rstrip(b"\0") for start in range(0, len(values), width)
        ]
        del self._buffer[: count * width]
        self._left -= count
        return self._left == 0

    def _read_strings(self) -> bool:
        """Read what is there; False if more bytes are needed first."""
        buffer, end, position, left = self._buffer, len(self._buffer), 0, self._left
        keep = self._max_value is not None and self.refused is None
        limit = self._max_value or 0
        append = self._values.append
        view = memoryview(buffer)
        while left and position < end:
            length = buffer[position]
            if length < 0x80:
                start = position + 1
            else:
                number = _varuint(buffer, position)
                if number is None:
                    break
                length, start = number
            stop = start + length
            if keep and length <= limit:
                if stop > end:
                    break
                append(bytes(view[start:stop]))
            else:
                if keep:
                    append(Oversized(length))
                if stop > end:
                    self._skip, stop = stop - end, end
            position = stop
            left -= 1
        view.release()
        del buffer[:position]
        self._left = left
        return self._skip > 0 or left == 0


def array_block_header(rows: int) -> bytes:
    """What precedes offsets and floats in a block of `rows` embeddings."""
    name, type_name = RETURN_NAME.encode(), RETURN_TYPE.encode()
    return b"".join(
        (b"\x01", _encode_varuint(rows), _encode_varuint(len(name)), name,
         _encode_varuint(len(type_name)), type_name)
    )  # fmt: skip


def empty_rows(rows: int) -> Iterator[bytes]:
    """A block of `rows` empty arrays, in pieces: what is owed for a query that fails anyway."""
    yield array_block_header(rows)
    left = 8 * rows
    while left:
        yield _ZEROS[:left]
        left -= min(left, len(_ZEROS))


def is_array_block(data: bytes, rows: int) -> bool:
    """Whether `data` is one whole block of `rows` embeddings, to the byte."""
    header = array_block_header(rows)
    floats = len(header) + 8 * rows
    if not data.startswith(header) or len(data) < floats:
        return False
    last = int.from_bytes(data[floats - 8 : floats], "little") if rows else 0
    return len(data) == floats + 4 * last


def _varuint(buffer: bytearray, position: int) -> tuple[int, int] | None:
    """A LEB128 number and the position after it; None if it is not complete."""
    value = shift = 0
    while position < len(buffer):
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if value >> 64 or (shift > 63 and byte >= 0x80):
            raise ProtocolError("a length of more than 64 bits")
        if byte < 0x80:
            return value, position
    return None


def _encode_varuint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _fixed_string_width(type_name: str) -> int | None:
    digits = type_name.removeprefix("FixedString(").removesuffix(")")
    if type_name != f"FixedString({digits})":
        return None
    width = _number(digits)
    if not 0 < width <= _FIXED_STRING_MAX:
        raise ProtocolError(f"a type {type_name[:_SHOWN]}")
    return width


def _width_of(type_name: str) -> int | None:
    name, _, arguments = type_name.partition("(")
    if name != "Decimal":
        return _WIDTHS.get(name)
    digits = _number(arguments.partition(",")[0])
    if not digits:
        return None
    return next((width for width, most in ((4, 9), (8, 18), (16, 38)) if digits <= most), 32)


def _number(digits: str) -> int:
    """A short decimal number; 0 for anything else."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0
