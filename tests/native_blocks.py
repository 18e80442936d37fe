"""What ClickHouse writes, made by hand: pieces of the Native format."""

from __future__ import annotations


def varuint(value: int) -> bytes:
    """A number, seven bits a byte, the lowest first."""
    encoded = b""
    while value >= 0x80:
        encoded += bytes([value & 0x7F | 0x80])
        value >>= 7
    return encoded + bytes([value])


def string(value: bytes) -> bytes:
    """A String value: its length, then its bytes."""
    return varuint(len(value)) + value
