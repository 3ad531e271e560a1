"""Whether a run folder could be: what the system says to its path, before anything is done."""

from __future__ import annotations

import os
from pathlib import Path

from vitbase.errors import ConfigError
from vitbase.files import WRITING
from vitbase.runs.checkpoints import CHECKPOINTS, CKPT_SUFFIX, STATE_FILE, checkpoint_name

_LONGEST_NAME = 255
"""Bytes of a name in the file systems that there are; a system tells only where the folder is."""


def check_place(path: Path, run_name: str) -> None:
    """Check the path of a run folder, and of the longest that a run writes in it.

    Raises: ConfigError naming the option if the system takes no such path, or a file is in its way.
    """
    name = f"{WRITING}00000000-{checkpoint_name(run_name, 10**6, 10**8)}"
    longest = path / CHECKPOINTS / f"{name}{CKPT_SUFFIX}" / STATE_FILE
    try:
        sizes = {part: len(os.fsencode(part)) for part in longest.parts}
        part = max(sizes, key=lambda part: sizes[part])
        if sizes[part] > _LONGEST_NAME:
            option = "name" if part == f"{name}{CKPT_SUFFIX}" else "output_dir"
            raise ConfigError(
                f"Option '{option}' is too long: '{part[:60]}…' would have {sizes[part]} bytes, "
                f"and a file's name has {_LONGEST_NAME} at most."
            )
        os.lstat(longest)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a NUL, or what is no text, is a ValueError
        cause = error.strerror if isinstance(error, OSError) else error
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}…"
        raise ConfigError(
            f"output_dir {shown} cannot be a run folder: {cause}. Choose another --output_dir."
        ) from None
