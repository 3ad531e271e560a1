"""What a path names -> tar shards of its training and of its evaluation images, in one folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vitbase.config.options import Reading
from vitbase.curation.packing.estimate import tell_bytes
from vitbase.curation.packing.files import read_manifest
from vitbase.curation.packing.leave_out import without_named
from vitbase.curation.packing.split import PackReport, check_options, pack_source
from vitbase.disk import as_path
from vitbase.errors import DataError
from vitbase.sources.layouts import Beside, Given, HeldOut, Layout, find_val, recognise
from vitbase.sources.open import with_classes
from vitbase.sources.splits import Split


def pack_data(
    data_path: str,
    out_dir: str | Path,
    *,
    split: Literal["train", "val", "both"] = "both",
    val_data_path: str | None = None,
    layout: Reading = "auto",
    short_side: int | None = None,
    quality: int | None = None,
    raw: int | None = None,
    shard_megabytes: int | None = None,
    leave_out: str | None = None,
    progress: Callable[[str, int, int], None] = lambda split, done, images: None,
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> list[PackReport]:
    """Pack what a path names, as :func:`pack_source` does: the training images, and the others.

    The evaluation images get the class numbers of the training images, as in a run.

    Args:
      data_path: as the option of that name in training.
      out_dir: gets the shards of all splits.
      split: "both" takes the evaluation images where there are any.
      val_data_path: evaluation images, where ``data_path`` does not have them.
      layout: as the option of that name in training.
      short_side: images whose shorter side is longer are made smaller.
      quality: of the JPEGs that these become; None: 92.
      raw: write decoded pixels instead of files, with a shorter side of at most this.
      shard_megabytes: in 2**20 bytes; a shard ends with the image that reaches this size. None:
        256, or 1024 of pixels.
      leave_out: FILE.csv that names images not to pack, as :func:`without_named` reads it.
      progress: told a split's name, images done, and images in all, now and then.
      tell: told before anything is written how many bytes pixels will take.
      **options: as of :func:`pack_source`.
    Returns: a report of every split.
    Raises: DataError as :func:`pack_source`, or if there is nothing to pack.
    """
    if shard_megabytes is not None and shard_megabytes < 1:
        raise DataError(f"--shard_megabytes {shard_megabytes}: expected at least 1.")
    if quality is not None and short_side is None and raw is None:
        raise DataError(
            f"--quality {quality} is that of images made smaller; others are copied as they are. "
            "Give --short_side too."
        )
    shard_bytes = None if shard_megabytes is None else shard_megabytes << 20
    check_options(shard_bytes, options.get("shard_images"), short_side, quality, raw)
    out = as_path(out_dir)
    layouts: dict[Split, Layout] = {}
    used: dict[str, str] = {}
    if split != "val":
        layouts["train"], used["data_path"] = recognise(data_path, "data_path", layout), data_path
    if split != "train":
        match find_val(data_path, val_data_path, layout):
            case Given(found, place):
                layouts["val"], used["val_data_path"] = found, place
            case Beside(found):
                layouts["val"], used["data_path"] = found, data_path
            case HeldOut(found) if split == "val":  # all that is there
                layouts["val"], used["data_path"] = found, data_path
    for option, path in used.items():
        _refuse_inside(out, path, option)
    sources = {name: found.open(name) for name, found in layouts.items()}
    if leave_out is not None:
        sources = without_named(sources, leave_out, whole=split == "both")
    if "val" in sources:
        if "train" in sources:
            names = sources["train"].class_names
        else:  # the training images may be packed already
            packed = read_manifest(out)
            names = tuple(packed["class_names"]) if "train" in packed["splits"] else ()
        if names:
            sources["val"], _ = with_classes(sources["val"], names)
    if raw is not None:
        for name, source in sources.items():
            for line in tell_bytes(source, name, raw, out):
                tell(line)
    return [
        pack_source(
            source,
            out,
            name,
            short_side=short_side,
            quality=quality,
            raw=raw,
            shard_bytes=shard_bytes,
            progress=partial(progress, name),
            **options,
        )
        for name, source in sources.items()
    ]


def _refuse_inside(out: Path, data_path: str, option: str) -> None:
    """Refuse to write among the images: the shards would be taken for a class, or for the set."""
    if not as_path(data_path).is_dir():
        return
    folder = as_path(data_path).resolve()
    if out.resolve() == folder or folder in out.resolve().parents:
        raise DataError(
            f"{out} lies in the images' own folder, --{option} {data_path}: the shards would be "
            "taken for a part of it. Pack into a folder outside."
        )
