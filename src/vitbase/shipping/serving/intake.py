"""What a request carries -> the bytes of an image, bounded before anything is made of it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from vitbase.files import parse_json
from vitbase.shipping.serving.limits import BODIES_AT_ONCE, Limits
from vitbase.shipping.serving.refusals import Refusal, busy

_RAW = {"", "application/octet-stream", "application/x-www-form-urlencoded"}
"""Types that tell nothing; the last is what curl says of `--data-binary`, unasked."""

_IMAGE = "image"
"""The key of JSON, and the name of a form's field."""

_MOST_VALUES = 16
_MOST_PARTS = 16
_SECONDS_PASSED_OVER = 5.0
_SECONDS_BETWEEN_PARTS = 0.5


class Memory:
    """The bytes of bodies that may be held at once, counted as they come."""

    def __init__(self, limits: Limits) -> None:
        self.free = BODIES_AT_ONCE * limits.longest_body

    @contextmanager
    def reading(self) -> Iterator[bytearray]:
        """Give room for a body; what it has in the end is free again afterwards."""
        body = bytearray()
        try:
            yield body
        finally:
            self.free += len(body)

    def extend(self, body: bytearray, chunk: bytes) -> None:
        """Add to a body. Raises: Refusal if others take all the room."""
        if len(chunk) > self.free:
            raise busy(1)
        self.free -= len(chunk)
        body += chunk


class Incoming:
    """The body of a request, as it comes."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self._request, self._limits = request, limits
        self._has_more = True

    async def read(self, body: bytearray, memory: Memory) -> None:
        """Read all of it into its room. Raises: Refusal if it is too long, or takes too long."""
        headers, limits = self._request.headers, self._limits
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(415, "Send the body as it is, without a Content-Encoding.")
        declared = headers.get("content-length", "0")  # digits, or it would not have come so far
        if len(declared) > 18 or int(declared) > limits.longest_body:
            raise too_long(limits)
        try:
            async with asyncio.timeout(limits.read_timeout):
                while self._has_more:
                    chunk = await self._next()
                    if len(body) + len(chunk) > limits.longest_body:
                        raise too_long(limits)
                    memory.extend(body, chunk)
        except TimeoutError:
            self._has_more = False  # that anybody would wait for
            raise Refusal(
                408,
                f"The request did not arrive within {limits.read_timeout:g} seconds.",
                {"Connection": "close"},
            ) from None

    async def pass_over(self) -> None:
        """Read what is left of a body that was refused, for a while, and keep nothing of it.

        Many clients read no answer before they have sent all; a connection that is closed before
        that takes the answer with it. One that asks before it sends is not told to send.
        """
        if "expect" in self._request.headers:
            return
        left = self._limits.longest_body
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(_SECONDS_PASSED_OVER):
                while self._has_more and left > 0:
                    async with asyncio.timeout(_SECONDS_BETWEEN_PARTS):
                        left -= len(await self._next())

    async def _next(self) -> bytes:
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            self._has_more = False
            raise Refusal(400, "The request ended before its body did.")
        self._has_more = message.get("more_body", False)
        chunk: bytes = message.get("body", b"")
        return chunk

    async def is_given_up(self) -> None:
        """Return when nobody waits for the answer any more."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def too_long(limits: Limits) -> Refusal:
    return Refusal(413, f"The image has more than the {limits.max_bytes:,} bytes that are taken.")


def image_of(body: bytes, content_type: str, limits: Limits) -> bytes:
    """Return the image file in a body.

    Args:
      body: an image file; a form (multipart/form-data) with one file; or JSON, an object whose
        `image` is a file in base64.
      content_type: which of these it is.
    Raises: Refusal if it is none of them, or the image is too long.
    """
    kind, options = parse_options_header(content_type)
    name = kind.decode("latin-1").strip().lower()
    if name == "multipart/form-data":
        content = _of_form(body, options.get(b"boundary", b""))
    elif name == "application/json":
        content = _of_json(body, limits)
    elif name in _RAW or name.startswith("image/"):
        content = body
    else:
        raise Refusal(
            415,
            "Send an image file as it is (Content-Type: image/jpeg, or application/octet-stream), "
            "as multipart/form-data, or in base64 as application/json.",
        )
    if not content:
        raise Refusal(400, "The request has no image.")
    if len(content) > limits.max_bytes:
        raise too_long(limits)
    return content


def _of_json(body: bytes, limits: Limits) -> bytes:
    try:
        value = parse_json(body, longest=limits.longest_body, most=_MOST_VALUES)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is no JSON that is taken: {str(error)[:200]}.") from None
    text = value.get(_IMAGE) if isinstance(value, dict) else None
    if not isinstance(text, str) or len(value) > 1:
        raise Refusal(400, f'The JSON should be an object {{"{_IMAGE}": "…"}}, and nothing else.')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, f"The JSON's '{_IMAGE}' is no base64.") from None


class _Form:
    """The files of a form, as a parser tells of them."""

    def __init__(self) -> None:
        self.files: list[bytes] = []
        self.is_whole = False
        self._parts = 0
        self._header: dict[bytes, bytes] = {}
        self._name, self._value, self._content = bytearray(), bytearray(), bytearray()

    def begin(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise Refusal(400, f"The form has more than {_MOST_PARTS} parts.")
        self._header, self._content = {}, bytearray()

    def name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header(self) -> None:
        self._header[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def part(self) -> None:
        _, options = parse_options_header(self._header.get(b"content-disposition"))
        if b"filename" in options or options.get(b"name") == _IMAGE.encode():
            self.files.append(bytes(self._content))

    def end(self) -> None:
        self.is_whole = True


def _of_form(body: bytes, boundary: bytes) -> bytes:
    if not boundary:
        raise Refusal(400, "The Content-Type of a form names its boundary.")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.name,
                "on_header_value": form.value,
                "on_header_end": form.header,
                "on_part_data": form.data,
                "on_part_end": form.part,
                "on_end": form.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "The body is no multipart/form-data.") from None
    if not form.is_whole:
        raise Refusal(400, "The form ends before its last boundary.")
    if len(form.files) != 1:
        raise Refusal(400, f"The form should have one file, and has {len(form.files)}.")
    return form.files[0]
