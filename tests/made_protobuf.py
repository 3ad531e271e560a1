"""Messages of protobuf, which MindSpore's checkpoints are, written byte by byte."""

from __future__ import annotations


def varint(value: int) -> bytes:
    """Write a number of at most 70 bits, which is what ten bytes hold; a negative one wraps."""
    value &= 2**70 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes | int) -> bytes:
    """Write a field: of bytes, or of one number."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content
