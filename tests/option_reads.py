"""Which options of a configuration the program reads while it runs.

Only a read by name counts: neither pydantic's own, nor those of validators, nor those of loops over
all options (which save, compare or list them). What a property or method of a section reads counts
for whoever asked it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vitbase
from vitbase.config import config
from vitbase.config.options import Section

PACKAGE = str(Path(vitbase.__file__).parent)
_ALL_OPTIONS = {"FIELDS", "section_of", "model_fields", "model_dump"}
"""Names by which a function goes over every option there is."""


@contextlib.contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """Collect the names of the options that are read inside the context, in any thread."""
    found: set[str] = set()

    def read(section: Section, name: str) -> Any:
        if name in type(section).model_fields:
            own_files = {config.__file__, sys.modules[type(section).__module__].__file__}
            if _is_read(sys._getframe(1), own_files):
                found.add(name)
        return object.__getattribute__(section, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", read)
        yield found


def _is_read(asking: FrameType, own_files: Set[str | None]) -> bool:
    frame: FrameType | None = asking
    while frame is not None:
        code = frame.f_code
        if code.co_filename == __file__:  # between a property and who asked for it
            frame = frame.f_back
            continue
        if not _ALL_OPTIONS.isdisjoint(code.co_names):
            return False
        # What a comprehension goes over stands in the function around it.
        if code.co_filename not in own_files and not code.co_name.startswith("<"):
            return code.co_filename.startswith(PACKAGE)
        frame = frame.f_back
    return False
