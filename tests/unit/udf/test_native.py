import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickhouse_clip.udf.errors import ProtocolError
from clickhouse_clip.udf.native import (
    BlockReader,
    Oversized,
    array_block_header,
    empty_rows,
    is_array_block,
)
from tests.native_blocks import string, varuint


def block(type_name: str, rows: int, values: bytes) -> bytes:
    header = varuint(1) + varuint(rows) + string(b"text") + string(type_name.encode())
    return b"%d\n" % rows + header + values


def strings(*values: bytes) -> bytes:
    return block("String", len(values), b"".join(map(string, values)))


def empty(rows: int) -> bytes:
    return b"".join(empty_rows(rows))


def read(data: bytes, max_value: int | None = 1 << 20) -> BlockReader:
    reader = BlockReader(max_value)
    assert reader.feed(data) == b""
    assert reader.done
    return reader


def test_reads_strings_with_any_bytes() -> None:
    values = [b"", b"a dog", b"tab\tnewline\nnul\0quote'", bytes(range(256)), b"x" * 100_000]
    reader = read(strings(*values))
    assert reader.rows == 5
    assert reader.take() == values
    assert reader.take() == []


@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=30),
    st.lists(st.integers(1, 50), min_size=1),
)
def test_pieces_of_any_size_give_the_same_rows(values: list[bytes], sizes: list[int]) -> None:
    data, reader, taken = strings(*values), BlockReader(1 << 20), []
    position = turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        assert not reader.done
        assert reader.feed(data[position : position + size]) == b""
        taken += reader.take()
        position, turn = position + size, turn + 1
    assert reader.done
    assert taken == values


def test_what_follows_the_block_is_returned() -> None:
    reader = BlockReader(100)
    assert reader.feed(strings(b"one") + strings(b"two")) == strings(b"two")
    assert reader.take() == [b"one"]


def test_nullable_without_nulls_is_read() -> None:
    data = block("Nullable(String)", 2, b"\0\0" + string(b"a") + string(b"b"))
    assert read(data).take() == [b"a", b"b"]


def test_null_is_refused_by_its_row() -> None:
    reader = read(block("Nullable(String)", 3, b"\0\1\0" + string(b"a") + b"\0" + string(b"c")))
    assert reader.refused is not None
    assert "row 2 of 3 is NULL" in reader.refused


def test_fixed_strings_lose_their_padding() -> None:
    data = block("FixedString(5)", 3, b"ab\0\0\0" + b"\0" * 5 + b"a\0b\0c")
    assert read(data).take() == [b"ab", b"", b"a\0b\0c"]


def test_nullable_fixed_strings() -> None:
    assert read(block("Nullable(FixedString(2))", 2, b"\0\0abc\0")).take() == [b"ab", b"c"]


@pytest.mark.parametrize(
    ("type_name", "width"),
    [
        ("UInt64", 8),
        ("Int8", 1),
        ("Float32", 4),
        ("DateTime64(3, 'UTC')", 8),
        ("Enum8('a' = 1)", 1),
        ("Decimal(9, 2)", 4),
        ("Decimal(18, 2)", 8),
        ("Decimal(38, 2)", 16),
        ("Decimal(76, 2)", 32),
        ("Nullable(UInt16)", 3),
    ],
)
def test_other_types_are_refused_by_name_and_read_past(type_name: str, width: int) -> None:
    reader = BlockReader(100)
    assert reader.feed(block(type_name, 3, bytes(3 * width)) + b"next") == b"next"
    assert reader.done
    assert reader.refused == f"got {type_name}, use toString()"
    assert reader.take() == []


def test_a_type_of_unknown_size_ends_the_stream() -> None:
    with pytest.raises(ProtocolError, match=r"got Array\(String\), use toString"):
        BlockReader(100).feed(block("Array(String)", 1, bytes(9)))


def test_long_values_are_read_past_and_never_held() -> None:
    reader = BlockReader(10)
    data = strings(b"short", b"x" * 5000, b"y" * 11, b"z" * 10)
    for start in range(0, len(data), 100):
        reader.feed(data[start : start + 100])
        assert len(reader._buffer) <= 100
    taken = reader.take()
    assert [value.length if isinstance(value, Oversized) else value for value in taken] == [
        b"short",
        5000,
        11,
        b"z" * 10,
    ]


def test_without_a_limit_nothing_is_kept_but_the_end_is_found() -> None:
    reader = BlockReader(None)
    assert reader.feed(strings(b"a", b"b" * 1000) + b"rest") == b"rest"
    assert reader.done
    assert reader.take() == []


def test_an_empty_block_is_done_with_its_header() -> None:
    assert read(block("Nullable(String)", 0, b"")).take() == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 30, "no chunk header"),
        (b"abc\n", "no number"),
        (b"2\n" + varuint(1) + varuint(3) + string(b"t") + string(b"String"), "announced"),
        (b"2\n" + varuint(2) + varuint(2) + string(b"t") + string(b"String"), "2 columns"),
        (b"2\n" + varuint(1) + varuint(2) + varuint(1 << 40), "header of"),
        (b"2\n" + b"\xff" * 20, "64 bits"),
    ],
)
def test_what_is_no_block_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        BlockReader(100).feed(data)


@pytest.mark.parametrize(
    "type_name",
    [
        *("FixedString(0)", "FixedString(-1)", "FixedString(x)", "FixedString()", "FixedString(5"),
        *(
            "FixedString(16777216)",
            f"FixedString({'9' * 5000})",
            "Decimal(x)",
            "Decimal(",
            "Decimal",
        ),
        *("Nullable(", "Nullable()", "Nullable(Nullable(String))", "LowCardinality(String)", ""),
    ],
)
def test_hostile_types_are_refused(type_name: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        BlockReader(100).feed(block(type_name, 2, bytes(100)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("rows", [1 << 32, 1 << 62])
def test_more_rows_than_there_can_be_are_refused(rows: int) -> None:
    with pytest.raises(ProtocolError, match="rows"):
        BlockReader(100).feed(block("String", rows, b""))


@pytest.mark.parametrize("type_name", ["String", "FixedString(16777215)", "Nullable(String)"])
@pytest.mark.parametrize("max_value", [100, None])
def test_what_is_announced_takes_no_memory(type_name: str, max_value: int | None) -> None:
    """Four billion rows of 2**62 bytes are announced, and a kilobyte comes."""
    reader = BlockReader(max_value)
    reader.feed(block(type_name, (1 << 32) - 1, b""))
    for _ in range(100):
        reader.feed(varuint(1 << 62) * 10)
        assert len(reader._buffer) <= 200
    assert not reader.done


def test_a_null_is_found_in_whatever_piece_it_comes() -> None:
    data = block("Nullable(String)", 300, bytes(255) + b"\1" + bytes(44) + b"\0" * 300)
    reader = BlockReader(100)
    for start in range(0, len(data), 64):
        reader.feed(data[start : start + 64])
    assert reader.done
    assert reader.refused == "row 256 of 300 is NULL; filter such rows out, or use ifNull()"


def test_fixed_strings_too_long_are_oversized() -> None:
    taken = read(block("FixedString(20)", 2, bytes(40)), max_value=10).take()
    assert [value.length for value in taken if isinstance(value, Oversized)] == [20, 20]


def test_an_answer_is_a_whole_block_or_none() -> None:
    good = array_block_header(2) + struct.pack("<2Q3f", 1, 3, 1, 2, 3)
    assert is_array_block(good, 2)
    assert is_array_block(empty(5), 5)
    for bad, rows in ((good, 1), (good, 3), (good[:-1], 2), (good + b"x", 2), (b"", 1)):
        assert not is_array_block(bad, rows)


@given(st.binary(max_size=400))
def test_random_bytes_never_do_anything_but_raise_or_wait(data: bytes) -> None:
    reader = BlockReader(100)
    try:
        reader.feed(data)
    except ProtocolError:
        return
    assert reader.rows is None or reader.rows >= 0


def test_an_array_block_is_header_offsets_floats() -> None:
    data = array_block_header(300)
    assert data == b"\x01\xac\x02\x09embedding\x0eArray(Float32)"
    assert empty(2) == array_block_header(2) + struct.pack("<2Q", 0, 0)
    assert empty(20_000) == array_block_header(20_000) + bytes(160_000)
