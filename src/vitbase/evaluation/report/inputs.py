"""What a run has left, read as anything may have left it: bounded, checked, and what is missing."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vitbase.config.config import parse_toml
from vitbase.config.shipped import read_recipe_text
from vitbase.disk import find_strange, open_regular
from vitbase.errors import CheckpointError, ConfigError
from vitbase.evaluation.report.scored import Figure, Scored, as_finite, as_scored, wilson
from vitbase.files import read_json
from vitbase.runs.checkpoints import (
    BEST_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    REPORT,
    list_checkpoints,
)
from vitbase.runs.rows import read_rows

_LONGEST_THUMBNAIL = 1 << 18
_WIDEST_THUMBNAIL = 512
_MOST_SHOWN = 200
_MOST_DOUBTS = 500


class Shown(NamedTuple):
    """An evaluation image that the page shows; `picture` is a data URL, empty if it is damaged."""

    picture: str
    id: str
    label: str
    prediction: str
    p_label: float | None
    top: tuple[tuple[str, float], ...]
    kind: str


class Doubt(NamedTuple):
    """An image that somebody should look at, as `vitbase data doubts` found it."""

    kind: str
    id: str
    label: str
    prediction: str
    score: float | None


class Missing(NamedTuple):
    """What the page cannot show, and the command that makes it."""

    what: str
    command: str


@dataclasses.dataclass(frozen=True)
class RunData:
    """All that the report tells of a run.

    Attributes:
      training, evaluations: rows of `metrics.jsonl`, in the order of their updates.
      config: section -> option -> value.
      notes: what was passed over in reading.
    """

    path: Path
    name: str
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    scored: Scored | None
    shown: tuple[Shown, ...]
    doubts: tuple[Doubt, ...]
    best: str | None
    config: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]

    @property
    def figures(self) -> Mapping[str, Figure]:
        """The numbers of the evaluation; without it, those of the last one in training."""
        if self.scored is not None and self.scored.figures:
            return self.scored.figures
        return figures_of(self.evaluations[-1]) if self.evaluations else {}


def read_run(path: Path) -> RunData:
    """Read what a run has left.

    Raises: CheckpointError if it is no run's folder, holds nothing to report, or a file is damaged.
    """
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):  # no name of a file
        is_folder = False
    if not is_folder:
        raise CheckpointError(f"There is no folder {path}.")
    metrics_file, folder = path / "metrics.jsonl", path / REPORT
    known = (metrics_file, path / CONFIG_FILE, folder / "evaluation.json")
    if not any(map(_is_there, known)):
        raise CheckpointError(
            f"{path} is no run folder: it holds neither {CONFIG_FILE} nor metrics.jsonl. Name "
            f"the folder that `vitbase train` has written (its --output_dir)."
        )
    rows, notes = read_rows(metrics_file)
    rows = [row for row in rows if row["step"] < 1 << 53]
    training = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    scored = _read_scored(folder / "evaluation.json")
    if not training and not evaluations and scored is None:
        raise CheckpointError(
            f"{path} has nothing to report yet: metrics.jsonl holds no row, and there is no "
            f"evaluation. Train it, or evaluate it with: {_evaluate(path)}"
        )
    shown = _read_shown(folder, notes, () if scored is None else scored.classes)
    doubts = _read_doubts(
        folder / "doubts" / "doubts.json", () if scored is None else scored.classes
    )
    environment = _read_environment(folder / "environment.json")
    config = _read_config(path / CONFIG_FILE)
    return RunData(
        path,
        path.resolve().name,
        sorted(training, key=lambda row: row["step"]),
        sorted(evaluations, key=lambda row: row["step"]),
        scored,
        shown,
        doubts,
        _read_best(path / CHECKPOINTS / BEST_FILE),
        config,
        environment,
        tuple(_missing(path, training, scored, shown, environment, config)),
        tuple(notes),
    )


def _evaluate(path: Path) -> str:
    """Return the command that evaluates the last checkpoint of a run for its report."""
    found = list_checkpoints(path / CHECKPOINTS)
    last = found[-1].path if found else path
    return shlex.join(
        ["vitbase", "eval", "--checkpoint_path", str(last), "--out", str(path / REPORT)]
    )


def _missing(
    path: Path,
    training: list[Any],
    scored: Scored | None,
    shown: tuple[Shown, ...],
    environment: Mapping[str, str],
    config: Mapping[str, Any],
) -> list[Missing]:
    found = []
    if not training:
        found.append(
            Missing("learning curves", f"vitbase train … --output_dir {shlex.quote(str(path))}")
        )
    parts = {
        "intervals of all figures": scored is not None and scored.figures,
        "classes": scored is not None and scored.per_class,
        "confusion matrix": scored is not None and len(scored.confusion),
        "calibration": scored is not None and scored.calibration is not None,
        "best and worst images": shown,
    }
    absent = [name for name, there in parts.items() if not there]
    if absent:
        found.append(Missing(", ".join(absent), _evaluate(path)))
    if not environment:
        # It is written while training, so that a run that has ended gets none any more.
        place = shlex.quote(str(path))
        found.append(Missing("environment", f"vitbase train … --output_dir {place} --report True"))
    if not config:
        found.append(Missing("configuration", f"none: {CONFIG_FILE} is not there"))
    return found


def _is_there(path: Path) -> bool:
    try:
        return find_strange(path) not in {"is missing", "is a link that leads nowhere"}
    except NotADirectoryError:
        return False
    except OSError as error:
        raise _damaged(path, error.strerror) from None


def _read(path: Path) -> Any:
    """Return the JSON of a file; None if it is not there. Raises: CheckpointError."""
    if not _is_there(path):
        return None
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, getattr(error, "strerror", None) or error) from None


def _damaged(path: Path, why: object) -> CheckpointError:
    text = str(why).splitlines()[0][:200] if str(why) else "unreadable"
    return CheckpointError(f"{path} is damaged ({text}): remove it, or make it again.")


def _read_scored(path: Path) -> Scored | None:
    found = _read(path)
    try:
        return None if found is None else as_scored(found)
    except ValueError as error:
        raise _damaged(path, error) from None


def _read_best(path: Path) -> str | None:
    found = _read(path)
    name = found.get("checkpoint") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def _read_config(path: Path) -> Mapping[str, Mapping[str, Any]]:
    if not _is_there(path):
        return {}
    try:
        found = parse_toml(read_recipe_text(str(path)), "it")
    except ConfigError as error:
        raise _damaged(path, error) from None
    return {name: section for name, section in found.items() if isinstance(section, dict)}


def _read_environment(path: Path) -> Mapping[str, str]:
    found = _read(path)
    if not isinstance(found, dict):
        return {}
    return {k[:60]: v[:300] for k, v in list(found.items())[:60] if isinstance(v, str)}


def _read_doubts(path: Path, classes: tuple[str, ...]) -> tuple[Doubt, ...]:
    found = _read(path)
    if not isinstance(found, list):
        return ()
    return tuple(
        Doubt(
            _name(entry.get("kind"), ()),
            _name(entry.get("id"), ()),
            _name(entry.get("label"), classes),
            _name(entry.get("prediction"), classes),
            as_finite(entry.get("score")),
        )
        for entry in found[:_MOST_DOUBTS]
        if isinstance(entry, dict)
    )


def _name(value: Any, classes: tuple[str, ...]) -> str:
    """Return a class's name, given as that or as its number; any text, bounded."""
    if type(value) is int and 0 <= value < len(classes):
        return classes[value]
    return "" if value is None else str(value)[:300]


def _read_shown(folder: Path, notes: list[str], classes: tuple[str, ...]) -> tuple[Shown, ...]:
    found = _read(folder / "shown" / "shown.json")
    entries = found.get("images") if isinstance(found, dict) else None
    shown, damaged = [], 0
    for entry in entries[:_MOST_SHOWN] if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        picture = _read_picture(folder / "shown", entry.get("file"))
        damaged += not picture
        top = entry.get("top")
        pairs = [
            (_name(pair[0], classes), probability)
            for pair in (top[:10] if isinstance(top, list) else ())
            if isinstance(pair, list) and len(pair) == 2
            if (probability := as_finite(pair[1])) is not None
        ]
        shown.append(
            Shown(
                picture,
                _name(entry.get("id"), ()),
                _name(entry.get("label"), classes),
                _name(entry.get("prediction"), classes),
                as_finite(entry.get("p_label")),
                tuple(pairs),
                _name(entry.get("kind"), ()),
            )
        )
    if damaged:
        notes.append(f"{damaged} of {len(shown)} thumbnails in {folder / 'shown'} cannot be read.")
    return tuple(shown)


def _read_picture(folder: Path, name: Any) -> str:
    """Return a thumbnail, encoded anew, as a data URL: what is behind its pixels is left out."""
    if not isinstance(name, str) or not re.fullmatch(r"[0-9]{2,4}\.jpg", name):
        return ""
    try:
        with open(folder / name, "rb", opener=open_regular) as file:
            data = file.read(_LONGEST_THUMBNAIL + 1)
        if len(data) > _LONGEST_THUMBNAIL:
            return ""
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            if max(image.size) > _WIDEST_THUMBNAIL:
                return ""
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def figures_of(row: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of a row of evaluation, accuracies with the interval of their images."""
    images, figures = as_finite(row.get("eval_images")), {}
    for name, value in row.items():
        number = as_finite(value)
        short = name.removeprefix("eval_")
        if number is None or short == name or short in {"images", "unreadable", "seconds"}:
            continue
        counted = short in {"top1", "top5"} and images is not None and images >= 1
        if counted and images is not None and 0 <= number <= 1:
            figures[short] = Figure(number, *wilson(number, images))
        else:
            figures[short] = Figure(number)
    return figures
