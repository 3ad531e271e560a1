"""How far a run is, by a checkpoint: the numbers of its `progress.json`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from vitbase.disk import open_regular
from vitbase.errors import CheckpointError
from vitbase.files import LONGEST_JSON, parse_json, read_json
from vitbase.runs.checkpoints import NAME, PROGRESS_FILE, STATE_FILE

SCORES = {"eval_top1": "top-1", "eval_top5": "top-5", "eval_map": "mAP"}
"""What scores are called where people read them."""

_SCALER_KEYS = {"scale", "_growth_tracker"}
"""What both engines keep of loss scaling; torch's keeps its own options beside."""

_LONGEST = 1 << 20


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint so far on the evaluation images; the earlier of two equals."""

    checkpoint: str
    score: float
    score_name: str = "eval_top1"

    @property
    def epoch(self) -> int:
        """The epoch that it was taken after. Raises: CheckpointError if its name does not tell."""
        match = NAME.match(self.checkpoint)
        if match is None:
            raise CheckpointError(f"The best checkpoint is called {self.checkpoint}.")
        return int(match["epoch"])


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: everything about its state that is not a tensor.

    Attributes:
      closed: whether all that is due at this place was done: the evaluation, at an epoch's end.
      run: the id of the run; empty if the checkpoint is from before there were ids.
    """

    updates: int
    global_batch: int
    loss_scaler: dict[str, Any]
    best: Best | None
    finished: bool
    closed: bool = True
    run: str = ""


def read_progress(checkpoint: Path) -> Progress:
    """Read the numbers of a checkpoint. Raises: CheckpointError if they are damaged."""
    try:
        path = checkpoint / PROGRESS_FILE
        if path.is_file():
            fields = read_json(path, longest=_LONGEST)
        else:
            fields = _read_inside(checkpoint / STATE_FILE)
        best = fields.pop("best")
        progress = Progress(best=_best(best), **fields)
        _check(progress)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Checkpoint {checkpoint} has no progress to go on from: {error}."
        ) from None
    return progress


def _best(fields: Any) -> Best | None:
    """Build the best checkpoint so far. Raises: TypeError or ValueError if it is none."""
    if fields is None:
        return None
    best = Best(**fields)
    if not isinstance(best.checkpoint, str) or len(best.checkpoint) > 255:
        raise ValueError("the best checkpoint has no name")
    if NAME.match(best.checkpoint) is None or best.score_name not in SCORES:
        raise ValueError("the best checkpoint is none")
    if type(best.score) not in (int, float) or abs(best.score) > 1:  # a fraction, or no number
        raise ValueError("the best checkpoint has no score")
    return best


def _check(progress: Progress) -> None:
    """Check types and bounds. Raises: ValueError naming what is wrong."""
    for name, least in (("updates", 0), ("global_batch", 1)):
        value = getattr(progress, name)
        if type(value) is not int or not least <= value < 2**53:
            raise ValueError(f"{name} is no number of them")
    for name, kind in (("finished", bool), ("closed", bool), ("run", str), ("loss_scaler", dict)):
        if not isinstance(getattr(progress, name), kind):
            raise ValueError(f"{name} is {type(getattr(progress, name)).__name__}")
    scaler = progress.loss_scaler
    numbers = all(type(v) in (int, float) and math.isfinite(v) for v in scaler.values())
    if scaler and not (scaler.keys() >= _SCALER_KEYS and numbers and scaler["scale"] > 0):
        raise ValueError("loss_scaler holds no state of loss scaling")


def _read_inside(state: Path) -> Any:
    """Read the numbers where version 0.1.0 kept them: in the metadata of the training state.

    A safetensors file begins with the length of a JSON header, which has the metadata.
    """
    with open(state, "rb", opener=open_regular) as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(length, LONGEST_JSON + 1)))
    return parse_json(header["__metadata__"]["vitbase"])
