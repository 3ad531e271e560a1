"""Damage to bytes and to JSON, drawn by a seeded generator: a failure comes back."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from typing import Any

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


ODD_TEXTS = ("", "x" * 300, "../../x", "/etc/passwd", "a\nb", "\x1b[2J", "\0", "\ud800", "nan", "é")


def odd_value(rng: random.Random) -> Any:
    """Return a value of JSON that nobody expects."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice((-1, -(2**31), -(2**63), 10**30, 10**400))
    if kind == 2:
        return rng.choice((math.nan, math.inf, -math.inf, 1e308, -1e-308, 0.5, 5e-324))
    if kind == 3:
        return rng.choice(ODD_TEXTS)
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        nested: Any = 0
        for _ in range(rng.choice((1, 10, 60, 70, 150))):
            nested = [nested] if rng.random() < 0.5 else {"x": nested}
        return nested
    return rng.choice(([], {}, [[]], [0] * 1000, {"x": {}}, [None], {"": ""}))


def odd_json(rng: random.Random, value: Any) -> Any:
    """Return a value of JSON in which some parts are odd, gone, or said of others."""
    out = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(_places(out))
        if not places:
            return odd_value(rng)
        holder, key = rng.choice(places)
        other_holder, other_key = rng.choice(places)
        kind = rng.randrange(10)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(ODD_TEXTS)] = holder.pop(key)
        elif kind == 2 and isinstance(holder, dict):
            holder[rng.choice(("x", *ODD_TEXTS))] = odd_value(rng)
        elif kind == 3:
            holder[key] = copy.deepcopy(other_holder[other_key])
        elif kind == 4 and type(holder[key]) in (int, float):
            holder[key] = rng.choice((-holder[key], holder[key] + 1, holder[key] * 10, 0, 0.5))
        else:
            holder[key] = odd_value(rng)
    return out if rng.random() < 0.98 else odd_value(rng)


def odd_json_text(rng: random.Random, value: Any) -> bytes:
    """Return :func:`odd_json` as text, which sometimes says a key twice, or has odd blanks."""
    text = json.dumps(odd_json(rng, value))
    if rng.random() < 0.05:
        text = text.replace(", ", ', "updates": 1, ', 1)
    if rng.random() < 0.05:
        text = "\ufeff" + text
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Yield every (holder, key) of a value of JSON."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])
