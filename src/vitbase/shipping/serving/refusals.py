"""Why a request is not answered: a status of HTTP, and a sentence for whoever sent it."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(Exception):  # noqa: N818 (it may be the right answer)
    """A request that gets no predictions.

    Args:
      status: of HTTP.
      message: what is wrong, and what to do; no path of this machine, no name of its parts.
      headers: of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def busy(seconds: float) -> Refusal:
    """Return the refusal of one request too many, which may come again."""
    wait = str(min(60, max(1, round(seconds))))
    return Refusal(429, "Too many requests wait already: try again later.", {"Retry-After": wait})


def late() -> Refusal:
    """Return the refusal of a request whose time is up.

    504 is what Google's APIs answer for DEADLINE_EXCEEDED (google/rpc/code.proto).
    """
    return Refusal(504, "There was no answer before the deadline.")
