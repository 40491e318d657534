"""Protobuf's wire format, as far as answers are written in it by hand (protobuf.dev, "Encoding")."""

from __future__ import annotations

from collections.abc import Iterable

_CONTINUED = 0x80
_LENGTH_DELIMITED = 2
_ONE_BYTE_FIELDS = 16


def varint(value: int) -> bytes:
    """Return a non-negative integer of at most 64 bits as a varint."""
    if value < _CONTINUED:
        return bytes((value,))
    encoded = bytearray()
    while value >= _CONTINUED:
        encoded.append(value & 0x7F | _CONTINUED)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def tag(field: int, wire_type: int) -> bytes:
    """Return what stands before a field's value."""
    return varint(field << 3 | wire_type)


def delimited(field: int, content: bytes) -> bytes:
    """Return a field that holds bytes, a string, a message or packed numbers."""
    return tag(field, _LENGTH_DELIMITED) + varint(len(content)) + content


def repeated(field: int, contents: Iterable[bytes]) -> bytes:
    """Return a repeated field of bytes, strings or messages."""
    return b"".join([delimited(field, content) for content in contents])
