"""Sources of given images, for tests that need no storage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitbase.errors import ImageError
from vitbase.sources.source import Images, Source


@dataclass(frozen=True)
class Given(Images):
    """Bytes or pixels, and their names; None cannot be read."""

    contents: list[Any]
    names: list[str]

    def read(self, row: int) -> Any:
        if self.contents[row] is None:
            raise ImageError("it is gone")
        return self.contents[row]

    def name(self, row: int) -> str:
        return self.names[row]

    def describe(self, row: int) -> str:
        return self.names[row]


@dataclass(frozen=True)
class ReadBy(Images):
    """The images of a source, read by a function."""

    source: Source
    function: Callable[[int], Any]

    def read(self, row: int) -> Any:
        return self.function(row)

    def name(self, row: int) -> str:
        return self.source.name(row)

    def describe(self, row: int) -> str:
        return self.source.describe(row)


def given(
    contents: list[Any], labels: np.ndarray, class_names: tuple[str, ...], names: list[str]
) -> Source:
    return Source(Given(contents, names), np.arange(len(labels)), labels, class_names)


def read_by(source: Source, function: Callable[[int], Any]) -> Source:
    return Source(
        ReadBy(source, function), np.arange(len(source)), source.labels, source.class_names
    )
