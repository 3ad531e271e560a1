"""Checkpoints as they come and go on disk: each appears whole, and goes only when it may.

Nothing here loads torch or the options, since the process that writes starts with little.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vitbase.files import (
    place_beside,
    remove,
    remove_unfinished,
    sync,
    write_whole,
    written_whole,
)
from vitbase.runs import checkpoints
from vitbase.runs.checkpoints import BEST_FILE, PROGRESS_FILE

_SPARE_BYTES = 1 << 20
"""Left free beside a checkpoint, for the log and what describes it."""

Digests = Mapping[str, str]
"""SHA-256 by the name of a file, of those whose content went through our hands."""


def write_checkpoint(
    final: Path,
    write_tensors: Callable[[Path], Digests],
    progress: Mapping[str, Any],
    needed: int = 0,
    writing: Path | None = None,
) -> None:
    """Write a checkpoint beside its place, sync it, and rename it into place.

    Args:
      final: its folder. One that is there is replaced: it is damaged, and the run has come here
        again; or it was written before the evaluation that is due at its place.
      write_tensors: writes weights and training state into the folder that it is given.
      progress: of the run, at this place.
      needed: bytes that must be free before the first is written.
      writing: where other ranks write parts of it meanwhile, if they do; it is there already.
    Raises: OSError, after which everything is as before.
    """
    checkpoints_folder = final.parent
    if writing is None:
        with contextlib.suppress(OSError):  # tried again next time
            remove_unfinished(checkpoints_folder)
    free = shutil.disk_usage(checkpoints_folder).free
    if free < needed + _SPARE_BYTES:
        cause = f"it needs {needed:,} bytes, of which {free:,} are free"
        raise OSError(errno.ENOSPC, cause, str(checkpoints_folder))
    with replacing(final) as make_way, written_whole(final, writing) as place:
        if writing is None:
            place.mkdir()
        digests = write_tensors(place)
        numbers = json.dumps(progress, indent=1, sort_keys=True)
        (place / PROGRESS_FILE).write_text(numbers + "\n", encoding="utf-8")
        checkpoints.write_manifest(place, digests)
        for inside in place.iterdir():
            sync(inside)
        make_way()
    best = progress["best"]
    if best is not None:
        line = json.dumps({"checkpoint": best["checkpoint"], best["score_name"]: best["score"]})
        write_whole(checkpoints_folder / BEST_FILE, line + "\n")


def prune_checkpoints(newest: Path, keep: int, best: str | None) -> None:
    """Remove what a checkpoint that was just written supersedes.

    Those after it, which a run that went back to an earlier one will pass again, count for
    nothing: they are damaged, or they would have been gone on from.

    Args:
      newest: its folder, which is whole.
      keep: how many to keep, this one and the newest before it.
      best: the name of one that is kept in any case.
    Raises: OSError.
    """
    found = checkpoints.list_checkpoints(newest.parent)
    place = next((known for known in found if known.path.name == newest.name), None)
    if place is None:
        return
    for checkpoint in [older for older in found if older <= place][:-keep]:
        if checkpoint.path.name != best:
            remove_at_once(checkpoint.path)


def prune_files(newest: Path, keep: int) -> None:
    """Keep of the files beside one that are named as checkpoints only the newest, as above."""
    found = checkpoints.list_checkpoints(newest.parent, newest.suffix)
    place = next((known for known in found if known.path.name == newest.name), None)
    if place is None:
        return
    for checkpoint in [older for older in found if older <= place][:-keep]:
        checkpoint.path.unlink()


@contextlib.contextmanager
def replacing(final: Path) -> Iterator[Callable[[], None]]:
    """Give what moves a folder out of the way, if it is there; it comes back if the block raises.

    Only in between, for the time of two renames, is there none.
    """
    aside = place_beside(final)
    try:
        yield lambda: os.rename(final, aside) if os.path.lexists(final) else None
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(final):
            os.rename(aside, final)
        raise
    with contextlib.suppress(OSError):  # tried again next time, as all that is not whole
        remove(aside)


def remove_at_once(folder: Path) -> None:
    """Remove a folder, if it is there, so that nobody sees a part of it. Raises: OSError."""
    if not os.path.lexists(folder):
        return
    aside = place_beside(folder)
    os.rename(folder, aside)
    sync(folder.parent)
    remove(aside)
