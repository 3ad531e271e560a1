"""Whose a checkpoint is: a run has an id, made at its first start, and its checkpoints name it.

The id stands in `run.id` of the run folder and in the `progress.json` of each checkpoint, so that
one of another run is known by it, although it is whole and fits. Runs of before there were ids go
on: a checkpoint that names no run is taken for the folder's own.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path

from vitbase.disk import read_regular
from vitbase.errors import CheckpointError
from vitbase.files import read_json
from vitbase.runs.checkpoints import CHECKPOINTS, PROGRESS_FILE, list_checkpoints

RUN_ID_FILE = "run.id"
_ID = re.compile(r"[0-9a-f]{16}")
_LONGEST = 1 << 20


def new_run_id() -> str:
    return secrets.token_hex(8)


def run_id_text(run_id: str) -> str:
    """Return the content of `run.id`: an id, and digits by which a damaged one is known."""
    return f"{run_id} {_check_digits(run_id)}\n"


def read_run_id(run: Path) -> str | None:
    """Return the id of the run in a folder; None if nothing tells it.

    A `run.id` that is lost or damaged is made up for by the checkpoints, if they agree.

    Raises: CheckpointError if they do not.
    """
    stored = _read_stored(run / RUN_ID_FILE)
    if stored is not None:
        return stored
    named: dict[str, str] = {}  # those that name no run may be of any: as if they named one more
    for checkpoint in list_checkpoints(run / CHECKPOINTS):
        run_id = _read_named(checkpoint.path)
        if run_id is not None:
            named.setdefault(run_id, checkpoint.path.name)
    if len(named) > 1:
        names = " and ".join(list(named.values())[:2])
        raise CheckpointError(
            f"{run} holds checkpoints of {len(named)} runs ({names} are of different ones), and "
            f"its {RUN_ID_FILE} is missing or damaged: move those of other runs away."
        )
    return next(iter(named), None) or None


def run_id_of(checkpoint: Path) -> str | None:
    """Return the id of the run that a checkpoint names; None if it names none."""
    return _read_named(checkpoint) or None


def find_stranger(checkpoint: Path, run_id: str | None) -> str | None:
    """Say that a checkpoint is of another run than this one; None if it is not."""
    other = run_id_of(checkpoint)
    if None in (other, run_id) or other == run_id:
        return None
    return f"it is of another run ({other}; this one is {run_id})"


def _read_named(checkpoint: Path) -> str | None:
    """Read which run a checkpoint names; "" if it names none, None if that cannot be read."""
    try:
        named = read_json(checkpoint / PROGRESS_FILE, longest=_LONGEST).get("run", "")
    except (OSError, ValueError, AttributeError):
        return None
    return named if named == "" or (isinstance(named, str) and _ID.fullmatch(named)) else None


def _read_stored(path: Path) -> str | None:
    try:
        run_id, digits = read_regular(path, 1000).decode("ascii").split()
    except (OSError, ValueError):
        return None
    return run_id if _ID.fullmatch(run_id) and digits == _check_digits(run_id) else None


def _check_digits(run_id: str) -> str:
    return hashlib.sha256(run_id.encode("ascii")).hexdigest()[:8]
