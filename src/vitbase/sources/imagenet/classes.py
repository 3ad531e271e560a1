"""ImageNet-1k: its classes, and evaluation images that lie in one folder with labels in a file.

Three numberings of its 1000 classes are in use. Models, and everything here, number the synsets in
sorted order, from 0. The challenge's development kit numbers them otherwise, from 1; the file
beside this one translates. Files that give a synset need no numbering.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vitbase.disk import list_folder, open_regular
from vitbase.errors import DataError, first_few
from vitbase.sources.folders import build_source, is_image_name
from vitbase.sources.source import Source

SYNSET = re.compile(r"n\d{8}")
NUM_CLASSES = 1000

ACCEPTED = (
    "LOC_val_solution.csv (Kaggle: ImageId,PredictionString), "
    "val.txt or val_list.txt (Caffe: image and class number, a line each), "
    "ILSVRC2012_validation_ground_truth.txt (the development kit), "
    "imagenet_2012_validation_synset_labels.txt or another *synset*.txt (one synset a line, in the "
    "images' order), "
    "val.csv, val_labels.csv or labels.csv (filename,label)"
)
"""The files that may hold the labels of images in one folder, in words."""


class _Class(NamedTuple):
    synset: str
    challenge_id: int  # 1 to 1000, as in the development kit
    lemmas: str


@cache
def _classes() -> tuple[_Class, ...]:
    file = resources.files("vitbase") / "sources" / "imagenet" / "classes.txt"
    rows = (line.split("\t") for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(_Class(synset, int(number), lemmas) for synset, number, lemmas in rows)


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the 1000 synsets of ImageNet-1k in sorted order, that of every model's outputs."""
    return tuple(row.synset for row in _classes())


@cache
def challenge_synsets() -> tuple[str, ...]:
    """Return the same synsets in the order of the development kit: its number 1 comes first.

    Source: map_clsloc.txt of the ILSVRC development kits. The first 100 numbers of ILSVRC2012's
      ground truth give the synsets that TensorFlow Datasets lists for these images.
    """
    return tuple(row.synset for row in sorted(_classes(), key=lambda row: row.challenge_id))


@cache
def _lemmas() -> dict[str, str]:
    return {row.synset: row.lemmas for row in _classes()}


def readable_name(class_name: str) -> str:
    """Return WordNet's words for a synset of ImageNet-1k; any other name as it is.

    Args:
      class_name: such as "n01440764", which becomes "tench, Tinca tinca".
    """
    return _lemmas().get(class_name, class_name)


def holds_flat_images(folders: Iterable[str], files: Iterable[str]) -> bool:
    """Tell whether a folder with these entries holds images side by side, not in class folders."""
    return all("devkit" in name.lower() for name in folders) and any(map(is_image_name, files))


def holds_labelled_images(folder: Path, folders: Iterable[str], files: Iterable[str]) -> bool:
    """Tell whether a folder with these entries holds such images, and a file has their labels."""
    return holds_flat_images(folders, files) and next(_label_files(folder), None) is not None


def may_hold_labels(name: str) -> bool:
    """Tell by its name whether a file or folder beside images may hold their labels."""
    return "devkit" in name.lower() or any(pattern.fullmatch(name) for pattern, _ in _READERS)


def read_flat_images(folder: Path, option: str) -> Source:
    """Read ImageNet images that lie side by side, with labels from a file inside or near by.

    The file is looked for in the folder, beside it, a level higher, in a development kit at any
    of these places, and at the top of Kaggle's tree; the nearest is taken.

    Args:
      folder: the folder that holds the images.
      option: the option that named it, for messages.
    Returns: the images by name. The classes are all of ImageNet-1k, in its order.
    Raises: DataError naming the label file and the line if they do not fit the images.
    """
    files = list_folder(folder).files
    images = [name for name in files if is_image_name(name)]
    found = next(_label_files(folder), None)
    if found is None:
        raise DataError(
            f"--{option} {folder}: {len(images)} images directly in it, and no class folders, so "
            f"their labels have to be in a file inside or beside the folder: {ACCEPTED}; or give "
            f"--{option} FILE.csv with the columns path and label."
        )
    path, read = found
    try:
        labels = list(read(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read the labels in {path}: {error}") from None
    match = _by_name if labels and labels[0].name is not None else _by_number
    numbers = np.array(match(folder, images, path, labels), np.int64)
    notes = (f"{folder}: the labels of {len(images)} images are from {path}.",)
    return build_source(folder, images, numbers, imagenet_synsets(), notes)


class _Label(NamedTuple):
    line: int
    name: str | None  # of the image, if the file says it
    number: int  # of the class, in sorted order


_Reader = Callable[[Path], Iterator[_Label]]


def _label_files(folder: Path) -> Iterator[tuple[Path, _Reader]]:
    """Yield the files that may hold labels, the nearest first, at each place the surest first."""
    for place in _label_places(Path(os.path.abspath(folder))):
        with suppress(DataError):  # a folder higher up may be forbidden
            files = list_folder(place).files
            for pattern, read in _READERS:
                for name in files:
                    if pattern.fullmatch(name) and not _lists_classes(place / name):
                        yield place / name, read


def _label_places(folder: Path) -> Iterator[Path]:
    levels = [folder, *folder.parents[:2]]
    if folder.parent.name == "CLS-LOC":  # Kaggle: <top>/ILSVRC/Data/CLS-LOC/val
        levels = [folder, *folder.parents[:4]]
    for level in levels:
        yield level
        with suppress(DataError):
            for name in list_folder(level).folders:
                if "devkit" in name.lower():
                    yield from (level / name, level / name / "data")


def _lists_classes(path: Path) -> bool:
    """Tell a list of the classes, such as Caffe's synsets.txt, from a list of images' synsets."""
    if "synset" not in path.name:
        return False
    try:
        with open(path, encoding="utf-8", opener=open_regular) as file:
            lines = [*islice(file, NUM_CLASSES + 2)]
    except (OSError, UnicodeDecodeError):
        return True
    words = [line.split() for line in lines if line.strip()]
    if not words or len(words[0]) != 1:  # a synset and its name
        return True
    return tuple(line[0] for line in words) in (imagenet_synsets(), challenge_synsets())


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open(path, encoding="utf-8-sig", opener=open_regular) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.strip()


def _read_ground_truth(path: Path) -> Iterator[_Label]:
    _check_map(path.with_name("map_clsloc.txt"))
    numbers = [_numbers()[synset] for synset in challenge_synsets()]
    for line, text in _lines(path):
        if not _is_number(text) or not 1 <= int(text) <= NUM_CLASSES:
            raise DataError(
                f"{path}:{line}: '{text[:40]}' is no class number of the development kit: "
                f"expected 1 to {NUM_CLASSES}, one a line."
            )
        yield _Label(line, None, numbers[int(text) - 1])


def _check_map(path: Path) -> None:
    """Refuse a development kit whose numbering is another one than ImageNet-1k's."""
    if not path.is_file():
        return
    known = challenge_synsets()
    for line, text in _lines(path):
        synset, number, *_ = [*text.split(), "", ""]
        fits = _is_number(number) and 1 <= int(number) <= NUM_CLASSES
        if not fits or known[int(number) - 1] != synset:
            expected = f" (number {number} is {known[int(number) - 1]})" if fits else ""
            raise DataError(
                f"{path}:{line}: '{text[:40]}' is not ILSVRC2012's numbering{expected}. "
                "Use the development kit of ILSVRC2012, or class folders."
            )


def _read_synsets(path: Path) -> Iterator[_Label]:
    for line, text in _lines(path):
        yield _Label(line, None, _number(path, line, text))


def _read_pairs(path: Path) -> Iterator[_Label]:
    for line, text in _lines(path):
        name, _, label = text.rpartition(" ")
        if not name.strip():
            raise DataError(f"{path}:{line}: '{text[:60]}' is not an image and a class number.")
        yield _Label(line, name.strip(), _number(path, line, label))


def _read_csv(path: Path) -> Iterator[_Label]:
    with open(path, encoding="utf-8-sig", newline="", opener=open_regular) as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if len(header) != 2:
            raise DataError(
                f"{path}:1: expected a header of two columns (ImageId,PredictionString or "
                f"filename,label); found '{','.join(header)[:60]}'."
            )
        for row in rows:
            if row:
                line = rows.line_num
                tokens = row[1].split() if len(row) == 2 else []
                if not tokens or not row[0].strip():
                    raise DataError(f"{path}:{line}: expected an image and its label.")
                # Kaggle lists an object's box after each synset: the first names the class.
                yield _Label(line, row[0].strip(), _number(path, line, tokens[0]))


_READERS: tuple[tuple[re.Pattern[str], _Reader], ...] = (
    (re.compile(r"LOC_val_solution\.csv"), _read_csv),
    (re.compile(r"val(_list)?\.txt"), _read_pairs),
    # The kits of 2010 and 2011 have other classes.
    (
        re.compile(r"ILSVRC201[2-7](_clsloc)?_validation_ground_truth\.txt"),
        _read_ground_truth,
    ),
    (re.compile(r".*synset.*\.txt"), _read_synsets),
    (re.compile(r"(val|validation|val_labels|labels)\.csv"), _read_csv),
)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # Python refuses to read one of thousands of digits


@cache
def _numbers() -> dict[str, int]:
    return {synset: number for number, synset in enumerate(imagenet_synsets())}


def _number(path: Path, line: int, label: str) -> int:
    """Return the number of a class given by its synset, or by that number itself."""
    if _is_number(label):
        if int(label) < NUM_CLASSES:
            return int(label)
        raise DataError(
            f"{path}:{line}: class {label} is out of range: expected 0 to {NUM_CLASSES - 1}, the "
            "place in the sorted synsets. (The development kit's own numbers, from 1, are another "
            "order; they are read from ILSVRC2012_validation_ground_truth.txt.)"
        )
    number = _numbers().get(label)
    if number is None:
        raise DataError(f"{path}:{line}: '{label[:40]}' is not a synset of ImageNet-1k.")
    return number


def _stem(name: str) -> str:
    name = name.replace("\\", "/").rpartition("/")[2]
    return os.path.splitext(name)[0] if is_image_name(name) else name


def _by_name(
    folder: Path, images: Sequence[str], path: Path, labels: Sequence[_Label]
) -> list[int]:
    """Return the images' classes by their names, with or without folder and suffix."""
    by_stem: dict[str, _Label] = {}
    for label in labels:
        first = by_stem.setdefault(_stem(label.name or ""), label)
        if first is not label:
            raise DataError(
                f"{path}:{label.line}: '{label.name}' stands in line {first.line} already."
            )
    image_of: dict[str, str] = {}
    for image in images:
        before = image_of.setdefault(_stem(image), image)
        if before != image:
            raise DataError(f"{folder}: {before} and {image} are the same image. Keep one.")
    without = [image for stem, image in image_of.items() if stem not in by_stem]
    if without:
        raise DataError(
            f"{path} has no line for {len(without)} of the {len(images)} images in {folder}: "
            f"{first_few(without)}."
        )
    absent = [label for stem, label in by_stem.items() if stem not in image_of]
    if absent:
        raise DataError(
            f"{path}:{absent[0].line}: there is no image '{absent[0].name}' in {folder} "
            f"({len(absent)} of {len(labels)} lines have none)."
        )
    return [by_stem[_stem(image)].number for image in images]


def _by_number(
    folder: Path, images: Sequence[str], path: Path, labels: Sequence[_Label]
) -> list[int]:
    """Return the images' classes by the number at the end of their names: line 1 is image 1."""
    image_of: dict[int, str] = {}
    for image in images:
        number = re.search(r"(\d+)$", _stem(image))
        if number is None:
            raise DataError(
                f"{folder}: {image} has no number at its end, as ILSVRC2012_val_00000001.JPEG has, "
                f"so {path}, which has one label a line, does not say which is its own."
            )
        before = image_of.setdefault(int(number[1]), image)
        if before != image:
            raise DataError(f"{folder}: {before} and {image} have the same number. Keep one.")
    expected = range(1, len(labels) + 1)
    missing = [number for number in expected if number not in image_of]
    beyond = [image for number, image in image_of.items() if number not in expected]
    if missing or beyond:
        which = [f"no image with number {missing[0]}"] if missing else []
        which += [f"no line for {first_few(beyond)}"] if beyond else []
        raise DataError(
            f"{path} has {len(labels)} labels, but {folder} {len(images)} images: "
            f"there is {' and '.join(which)}."
        )
    by_image = {image: labels[number - 1].number for number, image in image_of.items()}
    return [by_image[image] for image in images]
