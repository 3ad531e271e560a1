"""The images that a user names: files, and folders that stand for the images inside them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vitbase.disk import list_folder, tell_passed_over
from vitbase.errors import DataError, first_few
from vitbase.sources.folders import Walk


def expand(
    paths: Sequence[str | Path],
    *,
    recursive: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Replace each folder by the images inside it, listed as in training, sorted by name.

    Args:
      recursive: whether to go into the folders inside.
      tell: gets a line about what is passed over.
    Raises: DataError for a path that does not exist or a folder without images.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [*_list_images(path, recursive, tell)]
            if not inside:
                deeper = not recursive and list_folder(path).folders
                hint = f" Those in '{deeper[0]}' and the like: --recursive." if deeper else ""
                raise DataError(f"There are no images in the folder {path}.{hint}")
            images += inside
        elif os.path.lexists(path):
            images.append(path)
        else:
            raise DataError(f"The image {path} does not exist.")
    return images


def _list_images(folder: Path, recursive: bool, tell: Callable[[str], None]) -> list[Path]:
    walk = Walk(folder)
    found = sorted(walk.images("", recursive=recursive), key=os.fsencode)
    for names, what in (
        (walk.left_out, "not called like an image"),
        (walk.not_entered, "being folders; --recursive goes into them"),
    ):
        if names:
            tell(f"{folder}: {len(names)} passed over, {what}: {first_few(names, count=False)}.")
    for note in tell_passed_over(folder, walk.passed_over):
        tell(note)
    return [folder / name for name in found]
