"""What is known of a weights file, and may be told to everybody: no path, host or user is in it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from vitbase.config.options import EMBEDDED
from vitbase.evaluation.calibration import read_temperature
from vitbase.evaluation.report.inputs import RunData, figures_of, read_run
from vitbase.evaluation.report.scored import Figure, Scored
from vitbase.runs.checkpoints import NAME, REPORT, find_run_folder, is_own_weights
from vitbase.runs.progress import read_progress
from vitbase.weights.load import OpenedWeights

_HUB_DATA = "hf:"
_OWN_PROTOCOL = "weights"  # images prepared as the weights were trained
_EMBEDDED_NAME = "Fashion-MNIST"
_EMBEDDED_ID = "zalando-datasets/fashion_mnist"
_PATHS = frozenset({"data_path", "val_data_path", "output_dir", "checkpoint_path", "map"})
"""Options that tell where things are on somebody's machine."""


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, as strangers may know it.

    Attributes:
      name: of people; of a folder its own name, without the way to it.
      id: on the hub; "" where it is not there.
    """

    name: str
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """How good the weights were found to be.

    Attributes:
      figures: with intervals where they are known.
      images: how many.
      unreadable: of these.
      data: which.
      protocol: whose way of preparing images it was; "" for the weights' own.
      scored: all that was kept of it; None of an evaluation in training.
    """

    figures: Mapping[str, Figure]
    images: int | None
    unreadable: int
    data: Data | None
    protocol: str
    scored: Scored | None


@dataclasses.dataclass(frozen=True)
class Told:
    """What is known of a weights file.

    Attributes:
      run: that it is of; None where it lies in no run's folder.
      options: of that run: section -> option -> value; of paths the last name.
      trained_on: None where nobody tells.
      place: epoch in which it was taken, and updates before.
      temperature: that was fitted for it.
      notes: what somebody who publishes it should know.
    """

    run: RunData | None
    options: Mapping[str, Mapping[str, Any]]
    trained_on: Data | None
    evaluated: Evaluated | None
    place: tuple[int, int] | None
    temperature: float | None
    notes: tuple[str, ...]


def tell(checkpoint: str | Path, opened: OpenedWeights) -> Told:
    """Gather what a run has left of its weights.

    Args:
      checkpoint: as it was given, which may lie in a run.
    Raises: CheckpointError if the run's files are damaged; DataError for the temperature.
    """
    weights = opened.path
    temperature = read_temperature(weights)
    folder = find_run_folder(weights) if is_own_weights(weights) else None
    if folder is None or not _has_rows(folder):
        note = (
            f"{checkpoint} lies in no run's folder: the card tells nothing of how it was trained."
        )
        return Told(None, {}, None, None, None, temperature, (note,))
    run = read_run(folder)
    again = f"vitbase eval --checkpoint_path {weights.parent} --out {weights.parents[2] / REPORT}"
    updates = read_progress(weights.parent).updates
    evaluated = _find_evaluation(run, weights, updates)
    notes = list(run.notes)
    if evaluated is None:
        notes.append(
            f"No evaluation of this checkpoint is kept, and the card says so. To have one: {again}"
        )
    elif evaluated.scored is None:
        notes.append(
            f"The card has the figures of the evaluation in training. For all of them: {again}"
        )
    match = NAME.match(weights.parent.name)
    options = {name: _without_paths(section) for name, section in run.config.items()}
    trained_on = run.config.get("data", {}).get("data_path")
    return Told(
        run,
        options,
        describe_data(trained_on) if isinstance(trained_on, str) else None,
        evaluated,
        None if match is None else (int(match["epoch"]), updates),
        temperature,
        tuple(notes),
    )


def _has_rows(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", f"{REPORT}/evaluation.json"))


def _find_evaluation(run: RunData, weights: Path, updates: int) -> Evaluated | None:
    """Return the evaluation of these weights, never that of another checkpoint."""
    scored = run.scored
    if scored is not None and scored.figures and _is_of(scored, weights):
        images, unreadable = scored.facts.get("images"), scored.facts.get("unreadable", 0.0)
        data, protocol = scored.facts.get("data"), str(scored.facts.get("protocol", ""))
        return Evaluated(
            scored.figures,
            int(images) if isinstance(images, float) else None,
            int(unreadable) if isinstance(unreadable, float) else 0,
            describe_data(data) if isinstance(data, str) else None,
            "" if protocol == _OWN_PROTOCOL else protocol,
            scored,
        )
    rows = [row for row in run.evaluations if row["step"] == updates]
    if not rows:
        return None
    figures, counts = figures_of(rows[-1]), rows[-1]
    images, lost = (counts.get(name) for name in ("eval_images", "eval_unreadable"))
    options = run.config.get("data", {})
    place = options.get("val_data_path") or options.get("data_path")
    return Evaluated(
        figures,
        images if type(images) is int else None,
        lost if type(lost) is int else 0,
        describe_data(place) if isinstance(place, str) else None,
        "",
        None,
    )


def _is_of(scored: Scored, weights: Path) -> bool:
    """Whether an evaluation in a run's folder is of a checkpoint of it: by the ends of its path."""
    found = Path(str(scored.facts.get("weights", "")))
    return found.parts[-2:] == weights.parts[-2:]


def describe_data(place: str) -> Data:
    """Name a data set by what `data_path` said, without telling where it lay."""
    if place == EMBEDDED:
        return Data(_EMBEDDED_NAME, _EMBEDDED_ID)
    if place.startswith(_HUB_DATA):
        name = re.split(r"[@:?#]", place.removeprefix(_HUB_DATA))[0]
        known = re.fullmatch(r"[\w.-]+/[\w.-]+|[\w.-]+", name, re.ASCII)
        return Data(name, name if known else "")
    return Data(last_name(place))


def last_name(place: str) -> str:
    """Return the last name of a path or URL, without what may follow in a URL."""
    if "://" in place:
        place = re.split(r"[?#]", place)[0]
    name = PurePosixPath(place.replace("\\", "/")).name
    return name or "a folder"


def _without_paths(section: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, value in section.items():
        is_place = isinstance(value, str) and value != EMBEDDED
        is_place = is_place and not value.startswith((_HUB_DATA, "hf-hub:"))
        shown[name] = last_name(value) if name in _PATHS and is_place else value
    return shown
