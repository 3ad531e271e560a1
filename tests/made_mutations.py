"""Damage of files: blind, such as disks, networks and attackers do to any bytes."""

from __future__ import annotations

import random
import re

from made_protobuf import varint

NUMBERS = (
    *(-1, 0, 1, 2, 127, 128, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**70 - 1),
)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Do to some bytes what disks, networks and attackers do."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not out:
            break
        at, other = rng.randrange(len(out)), rng.randrange(len(out))
        piece = out[at : at + rng.choice((1, 2, 4, 16, 100, 1000))]
        number = rng.choice(NUMBERS)
        width = rng.choice((1, 2, 4, 8))
        kind = rng.randrange(9)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            del out[at : at + len(piece)]
        elif kind == 4:
            out[other:other] = piece
        elif kind == 5:
            out[other : other + len(piece)] = piece
        elif kind == 6:
            out[at : at + rng.randrange(3)] = varint(number)
        elif kind == 7:
            out[at : at + width] = (number & (256**width - 1)).to_bytes(width, "little")
        elif digits := [place.start() for place in re.finditer(rb"\d", out[:20_000])]:
            at = rng.choice(digits)
            out[at : at + 1] = str(number).encode()
    return bytes(out)
