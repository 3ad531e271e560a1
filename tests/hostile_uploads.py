"""Requests that no good client sends: each must be refused, whatever becomes of the connection."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable
from typing import NamedTuple

from made_images import bomb, encode, photo


class Upload(NamedTuple):
    """A request as bytes.

    Attributes:
      kind: what is wrong with it.
      content: of the whole request.
      may_be_silent: whether the connection may end without an answer: the client has left.
    """

    kind: str
    content: bytes
    may_be_silent: bool = False


GOOD = {kind: encode(photo(60, 70), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP")}
SERVED = "a"
"""The model that is asked."""


def request(
    body: bytes,
    kind: str | None = "image/jpeg",
    path: str = f"/models/{SERVED}/predict",
    *,
    length: object = None,
    more: str = "",
    method: str = "POST",
) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{more}"
    head += f"Content-Type: {kind}\r\n" if kind is not None else ""
    head += f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"{head}\r\n".encode("latin-1") + body


def form(rng: random.Random, parts: list[tuple[str, bytes]], end: bytes = b"--\r\n") -> bytes:
    boundary = f"b{rng.randrange(1 << 30)}"
    body = b""
    for disposition, content in parts:
        head = f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n"
        body += head.encode("latin-1") + content + b"\r\n"
    body += f"--{boundary}".encode() + end
    return request(body, f"multipart/form-data; boundary={boundary}")


def huge_jpeg() -> bytes:
    """A JPEG that says it has 65,500 x 65,500 pixels."""
    content = GOOD["JPEG"]
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + b"\xff\xdc\xff\xdc" + content[at + 4 :]


def truncated(rng: random.Random) -> bytes:
    content = GOOD[rng.choice(["JPEG", "PNG", "WEBP", "BMP"])]
    return request(content[: rng.randrange(1, len(content) * 8 // 10)])


def noise(rng: random.Random) -> bytes:
    head = rng.choice([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF"])
    return request(head + rng.randbytes(rng.randrange(400)))


def wrong_kind(rng: random.Random) -> bytes:
    content = rng.choice(
        [b"hello", b"<html></html>", b"%PDF-1.7", b"PK\3\4zip", b"{}", b"\0" * 99, b""]
    )
    return request(content)


def wrong_type(rng: random.Random) -> bytes:
    kind = rng.choice(["text/plain", "video/mp4", "application/xml", "x", "\x7f", "é/é"])
    return request(GOOD["JPEG"], kind)


def not_plain(rng: random.Random) -> bytes:
    coding = rng.choice(["gzip", "br", "deflate", "identity, gzip"])
    return request(zlib.compress(GOOD["JPEG"]), more=f"Content-Encoding: {coding}\r\n")


def too_large(rng: random.Random) -> bytes:
    return request(GOOD["JPEG"], length=rng.choice([1 << 30, 1 << 60, "9" * 19]))


def big_image(rng: random.Random) -> bytes:
    return request(rng.choice([bomb(), huge_jpeg()]))


def wrong_length(rng: random.Random) -> bytes:
    length = rng.choice(["-1", "abc", "1e3", "0x10", "", "+5", "5, 6", "1" * 30, "٣"])
    return request(GOOD["JPEG"], length=length.encode().decode("latin-1"))


def longer_than_said(rng: random.Random) -> bytes:
    return request(GOOD["JPEG"], length=rng.randrange(1, 400))


def twice_long(rng: random.Random) -> bytes:
    return request(GOOD["JPEG"], more="Content-Length: 5\r\n")


def wrong_chunks(rng: random.Random) -> bytes:
    body = rng.choice(
        [b"zz\r\nabc\r\n0\r\n\r\n", b"-5\r\nabc\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"f" * 40]
    )
    head = f"POST /models/{SERVED}/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    return head.encode() + b"\r\n" + body


def odd_form(rng: random.Random) -> bytes:
    file, image = 'form-data; name="image"; filename="x.jpg"', GOOD["JPEG"]
    return rng.choice(
        [
            form(rng, []),
            form(rng, [("form-data; name=a", b"1")]),
            form(rng, [(file, image), (file, image)]),
            form(rng, [(file, image)], b""),
            form(rng, [(file, b"")]),
            form(rng, [(file, image[:300])]),
            form(rng, [("form-data; name=a", b"1")] * 40),
            form(rng, [("x" * 9000, image)]),
            request(image, "multipart/form-data"),
            request(image, "multipart/form-data; boundary="),
            request(image, f"multipart/form-data; boundary={'b' * 400}"),
            request(b"--b\r\n\r\n\r\n\r\n--b", "multipart/form-data; boundary=b"),
            request(b"\r" * 5000, "multipart/form-data; boundary=b"),
        ]
    )


def odd_json(rng: random.Random) -> bytes:
    text = base64.b64encode(GOOD["JPEG"]).decode()
    body: bytes = rng.choice(
        [
            *(json.dumps(value).encode() for value in ([], {}, None, 5, "x", {"image": None})),
            *(
                json.dumps({"image": value}).encode()
                for value in ("", "é", "a", "====", text[:301])
            ),
            json.dumps({"image": text, "more": 1}).encode(),
            json.dumps({"image": [text]}).encode(),
            b'{"image": "", "image": ""}',
            b"[" * 100_000,
            b'{"image": ' * 70 + b"1" + b"}" * 70,
            b'{"image": NaN}',
            b"\xff\xfe{}",
            b'{"image": "' + b"A" * 1000,
            b"1" * 5000,
        ]
    )
    return request(body, "application/json")


def odd_question(rng: random.Random) -> bytes:
    query = rng.choice(
        [
            *(
                "?top=0",
                "?top=-3",
                "?top=x",
                "?top=1.5",
                "?top=9999999999999999999",
                "?top=1&top=2",
            ),
            *("?deadline=0", "?deadline=nan", "?deadline=-1", "?deadline=1e9", "?deadline=x"),
            *(f"?top={'1' * 5000}", "?deadline=%00", "?top=%ff"),
        ]
    )
    return request(GOOD["JPEG"], path=f"/models/{SERVED}/predict{query}")


def odd_place(rng: random.Random) -> bytes:
    path = rng.choice(
        [
            *("/predict?model=../../etc/passwd", "/models/../predict", "/models//predict", "/x"),
            *("/models/%00/predict", f"/models/{'x' * 3000}/predict", "/predict?model=a&model=a"),
            *("//", "/predict/", "/admin/reload", "/predict?model=", "*", "http://x/"),
        ]
    )
    return request(GOOD["JPEG"], path=path)


def odd_method(rng: random.Random) -> bytes:
    method = rng.choice(["GET", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "FOO", "post"])
    return request(b"", method=method)


def no_http(rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
            b"GET\r\n\r\n",
            b"POST /predict HTTP/9.9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\n\r\n",  # no Host
            b"POST /predict HTTP/1.1\r\nHost: x\r\n broken\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
            b"POST /\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        ]
    )


def broken_off(rng: random.Random) -> bytes:
    content = request(GOOD["JPEG"])
    return content[: rng.randrange(1, len(content))]


REFUSED: tuple[Callable[[random.Random], bytes], ...] = (
    *(truncated, noise, wrong_kind, wrong_type, not_plain, too_large, big_image, wrong_length),
    *(longer_than_said, twice_long, wrong_chunks, odd_form, odd_json, odd_question, odd_place),
    *(odd_method, no_http, broken_off),
)


def uploads(count: int, seed: int = 0) -> list[Upload]:
    """Return so many, of every kind in turn."""
    rng = random.Random(seed)
    makers = [REFUSED[number % len(REFUSED)] for number in range(count)]
    return [Upload(make.__name__, make(rng), make is broken_off) for make in makers]
