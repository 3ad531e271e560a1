"""ImageNet and the data sets that are evaluated with its 1000 classes, by one command.

What is there below one folder is found by the names that it is distributed under. A row of the
table says how a data set's folders name classes; which of the model's outputs compete follows from
them, as in the papers: of 200 classes that a data set has, the model chooses among these 200.
Shape legend: B images of a batch, C classes of the model, S classes that the data set has.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vitbase.disk import list_folder
from vitbase.errors import ConfigError, DataError, first_few
from vitbase.evaluation.classes import ModelClasses, fit_classes
from vitbase.evaluation.corruptions import Corruption, Corruptions
from vitbase.evaluation.metrics import ClassificationSums
from vitbase.evaluation.real import find_real, keep_labelled
from vitbase.sources.imagenet.classes import NUM_CLASSES, imagenet_synsets
from vitbase.sources.layouts import open_source
from vitbase.sources.source import Source

_V2 = "imagenetv2-{}-format-val"


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set of the family.

    Attributes:
      name: in the results.
      folders: below the root, in lower case, where it may be; the first that is there is taken.
      classes: what its class folders are named by.
      source: the paper.
      num_classes: that it has; if they are fewer than the model's, only these compete.
      sets: fields of the preprocessing that its images ask for.
    """

    name: str
    folders: tuple[str, ...]
    source: str
    classes: Literal["synsets", "numbers"] = "synsets"
    num_classes: int = NUM_CLASSES
    sets: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_ABOVE = ("", "imagenet/", "imagenet-1k/", "imagenet1k/", "ilsvrc2012/", "imagenet2012/")
_VAL_FOLDERS = (
    *(f"{above}{name}" for above in _ABOVE for name in ("val", "validation", "ilsvrc2012_val")),
    *("ilsvrc2012_img_val", "ilsvrc/data/cls-loc/val"),
)


def _v2(kind: str) -> DataSet:
    places = (_V2.format(kind), f"imagenetv2/{_V2.format(kind)}")
    return DataSet(f"imagenetv2-{kind}", places, "Recht et al. 2019", classes="numbers")


DATA_SETS = (
    DataSet("imagenet", _VAL_FOLDERS, "Russakovsky et al. 2015"),
    _v2("matched-frequency"),
    _v2("threshold0.7"),
    _v2("top-images"),
    DataSet("imagenet-a", ("imagenet-a",), "arXiv 1907.07174", num_classes=200),
    DataSet("imagenet-r", ("imagenet-r",), "arXiv 2006.16241", num_classes=200),
    DataSet(
        "imagenet-sketch",
        ("imagenet-sketch", "imagenet-sketch/sketch", "imagenet_sketch", "sketch"),
        "Wang et al. 2019",
    ),
)
CORRUPTED = DataSet(
    "imagenet-c",
    ("imagenet-c",),
    "Hendrycks and Dietterich 2019",
    # Its images are central crops of 224 pixels already.
    sets={"crop_ratio": 1.0},
)


@dataclasses.dataclass(frozen=True)
class Task:
    """Images of the family to be evaluated on.

    Attributes:
      data_set: its row.
      name: of the images, such as imagenet-c/fog/3.
      source: the images; their labels index the outputs that compete.
      outputs: [S] the model's outputs that compete; None for all.
      valid: whether the labels are all that are right of each image (ReaL), float32 [N, C].
      corruption: name and severity, of the corrupted images.
    """

    data_set: DataSet
    name: str
    source: Source
    outputs: NDArray[np.int64] | None = None
    valid: bool = False
    corruption: tuple[str, int] | None = None

    @classmethod
    def alone(cls, source: Source) -> Task:
        """Return the images of a data set that is of no family."""
        return cls(DataSet("", (), ""), "", source)

    def restrict(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Return the logits of the outputs that compete, [B, S]."""
        if self.outputs is None:
            return logits_BC
        return logits_BC[:, torch.from_numpy(self.outputs).to(logits_BC.device)]


def find_tasks(root: str | None, model: ModelClasses) -> Iterator[Task]:
    """Yield what there is of the family below a folder, opened, with the model's outputs.

    Raises: ConfigError if there is nothing, or no folder is given; DataError if classes of a data
      set are not the model's.
    """
    if root is None:
        raise ConfigError("--suite imagenet needs --data_path FOLDER, which holds its data sets.")
    top = Path(root)
    if not top.is_dir():
        raise ConfigError(f"--data_path {root} is no folder: --suite imagenet looks below it.")
    found = [(row, place) for row in DATA_SETS if (place := _find(top, row))]
    corrupted = _find(top, CORRUPTED)
    real = find_real(top)
    if not found and corrupted is None:
        names = [row.folders[0] for row in (*DATA_SETS, CORRUPTED)]
        raise ConfigError(
            f"--data_path {root}: there is no data set of --suite imagenet. Expected one or "
            f"more of the folders {', '.join(names)} in it; found {_entries(top)}."
        )
    if real is not None and (not found or found[0][0].name != "imagenet"):
        raise ConfigError(
            f"{real} has other labels for the images of ImageNet's val, which are not below {root}."
        )
    if model.names is None and model.outputs != NUM_CLASSES:
        raise DataError(
            f"{model.path} does not name its {model.outputs} classes, and ImageNet-1k has "
            f"{NUM_CLASSES}: which output is which class is not known."
        )
    # All are opened before the first is evaluated: a mistake in the last shows at once.
    opened = [_open(row, row.name, place, model) for row, place in found]
    if real is not None:
        labelled = fit_classes(keep_labelled(opened[0].source, real), model)
        notes = _notable(labelled)
        task = Task(found[0][0], "imagenet-real", dataclasses.replace(labelled, notes=notes))
        opened.insert(1, dataclasses.replace(task, valid=True))
    yield from opened
    for kind, severity, place in _corruptions(corrupted) if corrupted else ():
        name = f"{CORRUPTED.name}/{kind}/{severity}"
        task = _open(CORRUPTED, name, place, model)
        yield dataclasses.replace(task, corruption=(kind, severity))


def summaries() -> tuple[
    Callable[[Task, Any], None], Callable[[], Iterator[tuple[str, Corruption | Corruptions]]]
]:
    """Return what takes the counts of corrupted images, and what tells their means at the end."""
    counts: dict[str, dict[int, ClassificationSums]] = {}

    def add(task: Task, sums: Any) -> None:
        if task.corruption is not None:
            kind, severity = task.corruption
            counts.setdefault(kind, {})[severity] = sums

    def told() -> Iterator[tuple[str, Corruption | Corruptions]]:
        kinds = tuple(Corruption(kind, counts[kind]) for kind in sorted(counts))
        for kind in kinds:
            yield f"{CORRUPTED.name}/{kind.name}", kind
        if kinds:
            yield CORRUPTED.name, Corruptions(kinds)

    return add, told


def _find(top: Path, row: DataSet) -> Path | None:
    """Return the first of a data set's folders that is there, whatever the case of its letters."""
    for wanted in row.folders:
        place: Path | None = top
        for part in wanted.split("/"):
            names = list_folder(place).folders if place is not None else ()
            same = [name for name in names if name.lower() == part]
            place = place / same[0] if place is not None and same else None
        if place is not None and _holds_something(place):
            return place
    return None


def _holds_something(place: Path) -> bool:
    folders, files, _ = list_folder(place)
    return bool(folders or files)


def _entries(top: Path) -> str:
    folders, files, _ = list_folder(top)
    return first_few([*folders, *files], 5) or "nothing"


def _open(row: DataSet, name: str, place: Path, model: ModelClasses) -> Task:
    """Open a data set, its classes found among the model's outputs."""
    source = open_source(str(place), "val", "data_path")
    if row.classes == "numbers":
        source = _by_number(source, place)
    own = source.class_names
    strangers = sorted({*own} - {*imagenet_synsets()})
    if strangers:
        raise DataError(
            f"{place}: {first_few(strangers)} are no synsets of ImageNet-1k, which the folders of "
            f"{name} are named by. Are these its class folders, as it is distributed?"
        )
    fitted = fit_classes(source, model)
    notes = _notable(fitted)
    if len(own) != row.num_classes:
        notes += (f"Warning: {name} has {row.num_classes} classes, but {place} {len(own)}.",)
    if row.num_classes == NUM_CLASSES:
        return Task(row, name, dataclasses.replace(fitted, notes=notes))
    outputs = _outputs_of(source, fitted)
    notes += (
        f"{name}: {len(own)} classes, which are found among the model's {model.outputs} by their "
        f"synsets ({own[0]} is output {outputs[0]}); the model chooses among these {len(own)}.",
    )
    place_of = np.full(model.outputs, -1, np.int64)
    place_of[outputs] = np.arange(len(outputs))
    names = tuple(fitted.class_names[output] for output in outputs)
    labels = place_of[fitted.labels]
    chosen = dataclasses.replace(fitted, labels=labels, class_names=names, notes=notes)
    return Task(row, name, chosen, outputs)


def _notable(fitted: Source) -> tuple[str, ...]:
    return tuple(note for note in fitted.notes if "have no evaluation images" not in note)


def _outputs_of(source: Source, fitted: Source) -> NDArray[np.int64]:
    """Return the output of each of a source's classes, [S]. Every class folder has an image."""
    _, first = np.unique(source.labels, return_index=True)
    outputs: NDArray[np.int64] = fitted.labels[first]
    return outputs


def _by_number(source: Source, place: Path) -> Source:
    """Rename class folders that are numbers to the synsets that they stand for."""
    wrong = [n for n in source.class_names if not re.fullmatch(r"\d{1,3}", n)]
    if wrong:
        raise DataError(f"{place}: expected class folders 0 to 999; found {first_few(wrong)}.")
    synsets = imagenet_synsets()
    return dataclasses.replace(
        source, class_names=tuple(synsets[int(number)] for number in source.class_names)
    )


def _corruptions(place: Path) -> Iterator[tuple[str, int, Path]]:
    """Yield corruption, severity and folder; its tar files put a folder above: blur/fog/1."""
    for name in list_folder(place).folders:
        folder = place / name
        inside = list_folder(folder).folders
        if any(map(_is_severity, inside)):
            for severity in filter(_is_severity, inside):
                yield name, int(severity), folder / severity
        else:
            yield from _corruptions(folder) if _may_hold_more(inside) else ()


def _is_severity(name: str) -> bool:
    return name in {"1", "2", "3", "4", "5"}


def _may_hold_more(folders: tuple[str, ...] | list[str]) -> bool:
    return bool(folders) and not any(re.fullmatch(r"n\d{8}", name) for name in folders)
