"""What a service takes: how much at once, how large, how long; and whom it obeys."""

from __future__ import annotations

import dataclasses
import hmac
import os
from pathlib import Path

from vitbase.data.formats import MAX_PIXELS
from vitbase.disk import read_regular
from vitbase.errors import ConfigError

TOKEN = "VITBASE_TOKEN"
"""In the environment: what a request has to know, if no file says it."""

MOST_CONNECTIONS = 512
"""At once; more are told to come again."""

BODIES_AT_ONCE = 8
"""Bodies of the largest size that are held in memory at once, before they are decoded."""

_SHORTEST_TOKEN, _LONGEST_TOKEN = 16, 1024
_LONGEST_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a service takes.

    Attributes:
      top: classes of an answer, where a request asks for no other number.
      batch_size: images that are computed together, at most, over all cores.
      max_wait: seconds that an image waits for others that are on their way.
      queue_size: images of a model that wait for their turn; None: as many as `batch_size`.
      deadline: seconds in which a request that is whole is answered, or refused.
      read_timeout: seconds in which a request has to arrive.
      max_bytes: of an image file.
      max_pixels: of an image, by its header.
      num_workers: threads that decode; None: one per core.
    Raises: ConfigError naming the first that is no such number.
    """

    top: int = 5
    batch_size: int = 16
    max_wait: float = 0.01
    queue_size: int | None = None
    deadline: float = 30.0
    read_timeout: float = 20.0
    max_bytes: int = 16 << 20
    max_pixels: int = 50_000_000
    num_workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("top", "batch_size", "queue_size", "max_bytes", "max_pixels", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"Option '{name}' should be at least 1.")
        for name in ("deadline", "read_timeout"):
            if not 0 < getattr(self, name) <= _LONGEST_SECONDS:
                raise ConfigError(
                    f"Option '{name}' is a number of seconds above 0, up to {_LONGEST_SECONDS:g}."
                )
        if not 0 <= self.max_wait <= self.deadline:
            raise ConfigError("Option 'max_wait' is a number of seconds, up to 'deadline'.")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"Option 'max_pixels' should be at most {MAX_PIXELS:,}.")

    @property
    def waiting(self) -> int:
        """Images of a model that may wait."""
        return self.batch_size if self.queue_size is None else self.queue_size

    @property
    def longest_body(self) -> int:
        """Bytes of a request: an image in base64, and what stands around it."""
        return -(-self.max_bytes // 3) * 4 + (64 << 10)


def read_token(token_file: str | None) -> bytes | None:
    """Return what requests have to know: a file's text, or `VITBASE_TOKEN`; None: anyone may ask.

    Raises: ConfigError if it cannot be read, or is none that can be sent, or too short.
    """
    if token_file is None:
        told = os.environ.get(TOKEN)
        if told is None:
            return None
        what, token = f"${TOKEN}", told.encode("utf-8", "surrogateescape").strip()
    else:
        what = f"--token_file {token_file}"
        try:
            token = read_regular(Path(token_file), _LONGEST_TOKEN + 2).strip()
        except OSError as error:
            raise ConfigError(f"{what}: {error.strerror or error}.") from None
    plain = all(0x21 <= letter <= 0x7E for letter in token)
    if not plain or not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN:
        raise ConfigError(
            f"{what}: a token is {_SHORTEST_TOKEN} to {_LONGEST_TOKEN:,} letters of ASCII without "
            f"spaces; `openssl rand -hex 32` makes one."
        )
    return token


def is_known(authorization: str | None, token: bytes) -> bool:
    """Whether a header `Authorization: Bearer TOKEN` says the token."""
    scheme, _, said = (authorization or "").partition(" ")
    given = said.strip().encode("utf-8", "surrogateescape")
    # Compared in a time that does not tell how much of it is right.
    return hmac.compare_digest(given, token) and scheme.lower() == "bearer"
