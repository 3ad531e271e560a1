"""How data sets lie on disk: each layout is a row that says how it is recognised and opened.

A layout is recognised by its content, not named by an option.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from vitbase.config.options import EMBEDDED
from vitbase.errors import DataError
from vitbase.sources import huggingface, tables
from vitbase.sources.archives import Split, find_archive, read_archive
from vitbase.sources.folders import list_folder
from vitbase.sources.imagenet.classes import holds_flat_images, read_flat_images
from vitbase.sources.listing import open_folder
from vitbase.sources.shards import source as shards
from vitbase.sources.source import Source

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "ilsvrc2012_train", "ilsvrc2012_img_train"),
    "val": ("val", "ilsvrc2012_val", "ilsvrc2012_img_val", "validation", "valid", "test"),
}
"""Names of folders that hold a split, in lower case; of several, the first that is there."""

NESTED = (
    *("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC"),
    *("cifar-10-batches-bin", "cifar-100-binary", "cifar-10-batches-py", "cifar-100-python"),
    *("MNIST/raw", "FashionMNIST/raw", "KMNIST/raw"),
)
"""Where well-known archives put what they unpack."""


def open_source(data_path: str, split: Split, option: str) -> Source:
    """Open one split of whatever a path names.

    Args:
      data_path: "embedded"; "hf:owner/name"; the URL of shards; a CSV or TSV file; or a folder of
        any layout in ``LAYOUTS``.
      split: "train" or "val".
      option: the option that named the path, for messages.
    Raises: DataError naming the option, the path, and what was expected there.
    """
    if data_path == EMBEDDED:
        with resources.as_file(resources.files("vitbase") / "sources" / "samples") as folder:
            return read_archive(folder, split, option)
    if data_path.startswith(huggingface.PREFIX):
        return huggingface.open_dataset(data_path, split, option)
    if "://" in data_path:
        return shards.open_shards(data_path, split, option)
    if _is_table(data_path):
        return tables.read_table(Path(data_path).expanduser(), split, option)
    here = _look(_existing_folder(data_path, option))
    return _find_layout(here).open(here, split, option)


def has_val(data_path: str, option: str = "data_path") -> bool:
    """Tell whether there are evaluation images in what a path names, apart from the others.

    Args: as of :func:`open_source`.
    Raises: DataError if there is nothing of that name.
    """
    if data_path == EMBEDDED:
        return True
    if data_path.startswith(huggingface.PREFIX):
        return huggingface.has_split(data_path, "val", option)
    if "://" in data_path:
        return shards.has_split(data_path, "val", option)
    if _is_table(data_path):
        return tables.has_split(Path(data_path).expanduser(), "val", option)
    here = _look(_existing_folder(data_path, option))
    return _find_layout(here).has_val(here, option)


def describe_layout(data_path: str, option: str) -> str:
    """Say in words which layout a path was recognised to have.

    Args: and Raises: as of :func:`has_val`.
    """
    if data_path == EMBEDDED:
        return "IDX files inside the package"
    if data_path.startswith(huggingface.PREFIX):
        return "data set of Hugging Face"
    if "://" in data_path:
        return "tar shards behind a URL"
    if _is_table(data_path):
        return "table of paths and labels"
    here = _look(_existing_folder(data_path, option))
    return _find_layout(here).describe(here)


class _Folder(NamedTuple):
    path: Path
    folders: list[str]
    files: list[str]


class _Layout(NamedTuple):
    describe: Callable[[_Folder], str]
    holds: Callable[[_Folder], object]  # whether a folder has this layout
    open: Callable[[_Folder, Split, str], Source]
    has_val: Callable[[_Folder, str], bool]


def _look(path: Path) -> _Folder:
    return _Folder(path, *list_folder(path))


def _find_layout(here: _Folder) -> _Layout:
    return next(layout for layout in LAYOUTS if layout.holds(here))


def _existing_folder(data_path: str, option: str) -> Path:
    folder = Path(data_path).expanduser()
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise DataError(
            f"--{option} {data_path} is a file; expected a folder, or a table "
            f"({', '.join(tables.TABLE_SUFFIXES)})."
        )
    nearest = next((parent for parent in folder.parents if os.path.isdir(parent)), None)
    where = f" (there is {nearest})" if nearest not in (None, Path("/"), Path(".")) else ""
    raise DataError(
        f"--{option} {data_path}: there is no such folder{where}. "
        f"Give the folder that holds the images: --{option} FOLDER."
    )


def _is_table(data_path: str) -> bool:
    path = Path(data_path).expanduser()
    return path.suffix.lower() in tables.TABLE_SUFFIXES and not os.path.isdir(path)


def _split_folders(here: _Folder) -> dict[Split, Path]:
    """Return where the splits are, if a folder holds nothing but ``train``, ``val`` and the like.

    Beside folders with ImageNet's own names, and beside a development kit, there may be others.
    """
    inside = {name.lower(): here.path / name for name in here.folders}
    known = {name for names in SPLIT_FOLDERS.values() for name in names}
    if not any(name.startswith("ilsvrc2012_") and name in known for name in inside):
        if "train" not in inside or any(n not in known and "devkit" not in n for n in inside):
            return {}
        # A class may be called "train": a split holds class folders or an archive, a class images.
        deeper = _look(inside["train"])
        if not deeper.folders and _find_layout(deeper).open in (_open_flat, _open_classes):
            return {}
    found: dict[Split, Path] = {}
    for split, names in SPLIT_FOLDERS.items():
        path = next((inside[name] for name in names if name in inside), None)
        if path is not None:
            found[split] = path
    return found


def _open_split(here: _Folder, split: Split, option: str) -> Source:
    found = _split_folders(here)
    if split not in found:
        names = " or ".join(name for name in SPLIT_FOLDERS[split] if "ilsvrc" not in name)
        raise DataError(f"--{option} {here.path}: there is no folder {names}.")
    inside = _look(found[split])
    return _find_layout(inside).open(inside, split, option)


def _describe_splits(here: _Folder) -> str:
    insides = [(path.name, _look(path)) for path in _split_folders(here).values()]
    described = {name: _find_layout(there).describe(there) for name, there in insides}
    if len({*described.values()}) == 1:
        return f"{described[insides[0][0]]} in {' and '.join(described)}"
    return ", ".join(f"{name}: {layout}" for name, layout in described.items())


def _nested(here: _Folder) -> Path | None:
    return next((here.path / name for name in NESTED if (here.path / name).is_dir()), None)


def _open_nested(here: _Folder, split: Split, option: str) -> Source:
    inside = _look(_nested(here) or here.path)
    return _find_layout(inside).open(inside, split, option)


def _nested_has_val(here: _Folder, option: str) -> bool:
    inside = _look(_nested(here) or here.path)
    return _find_layout(inside).has_val(inside, option)


def _describe_nested(here: _Folder) -> str:
    path = _nested(here) or here.path
    inside = _look(path)
    return f"{path.relative_to(here.path)}: {_find_layout(inside).describe(inside)}"


def _describe_archive(here: _Folder) -> str:
    kind = find_archive(here.files) or ""
    return kind.replace("idx", "IDX files").replace("cifar", "CIFAR-")


def _holds_shards(here: _Folder) -> bool:
    """Tell whether tar files in a folder, or in all of its splits' folders, are its images."""
    inside = _split_folders(here)
    if inside:
        return all(shards.holds_shards(list_folder(path)[1]) for path in inside.values())
    return shards.holds_shards(here.files)


def _open_flat(here: _Folder, split: Split, option: str) -> Source:
    return read_flat_images(here.path, option)


def _open_classes(here: _Folder, split: Split, option: str) -> Source:
    return open_folder(here.path, option)


LAYOUTS = (
    _Layout(
        _describe_archive,
        lambda here: find_archive(here.files),
        lambda here, split, option: read_archive(here.path, split, option),
        lambda here, option: True,
    ),
    _Layout(
        lambda here: "Parquet or Arrow files",
        lambda here: huggingface.holds_dataset(here.path),
        lambda here, split, option: huggingface.open_dataset(str(here.path), split, option),
        lambda here, option: huggingface.has_split(str(here.path), "val", option),
    ),
    _Layout(
        lambda here: "tar shards",
        _holds_shards,
        lambda here, split, option: shards.open_shards(str(here.path), split, option),
        lambda here, option: shards.has_split(str(here.path), "val", option),
    ),
    _Layout(
        _describe_splits,
        _split_folders,
        _open_split,
        lambda here, option: "val" in _split_folders(here),
    ),
    _Layout(_describe_nested, _nested, _open_nested, _nested_has_val),
    _Layout(
        lambda here: "ImageNet's images side by side, labels in a file",
        lambda here: holds_flat_images(here.folders, here.files),
        _open_flat,
        lambda here, option: False,
    ),
    _Layout(
        lambda here: "class folders",  # or else opening says that they are not there
        lambda here: True,
        _open_classes,
        lambda here, option: False,
    ),
)
"""The layouts of folders; the first that fits is taken."""
