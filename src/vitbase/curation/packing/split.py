"""From any source of images to tar shards, smaller or decoded if wanted.

The shards are a function of the source and the options alone, not of the number of threads, the
time, or who packs them. A finished shard appears whole, under its name, and then in the manifest;
one that is being written ends in ``.partial``. Started again after an interruption, packing goes on
after the shards that are there and match their checksums.

Images keep the source's order: they are read at random places anyway, and a run on the shards sees
the same images at the same positions as a run on the source. Programs that read shards from front
to back (webdataset, timm) want `shuffle`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitbase.curation.packing.files import (
    PARTIAL,
    LeftOut,
    ShardWriter,
    alone,
    disk_error,
    find_damage,
    read_manifest,
    timm_splits,
    verify_shards,
    write_json,
)
from vitbase.curation.packing.images import Change, Prepared, prepare_image, prepare_pixels
from vitbase.data.order import epoch_permutation
from vitbase.data.threads import CHUNK, count_workers, map_positions
from vitbase.disk import as_path
from vitbase.errors import DataError, ImageError
from vitbase.files import listed, remove_unfinished, write_whole
from vitbase.sources.shards.labels import NAMES_FILE
from vitbase.sources.shards.layout import MANIFEST
from vitbase.sources.shards.source import open_shards
from vitbase.sources.source import Source
from vitbase.sources.splits import Split

__all__ = ["LeftOut", "PackReport", "pack_source", "verify_shards"]

SHARD_BYTES = 256 * 2**20
RAW_SHARD_BYTES = 2**30
"""Of decoded pixels: fewer open files, of which a process may have about a thousand."""
_QUALITY = 92
INFO = "_info.json"  # timm's reader of WebDataset shards wants it


@dataclass(frozen=True)
class PackReport:
    """What was packed."""

    folder: Path
    split: str
    images: int
    shards: int
    bytes: int
    kept_shards: int  # that were there already
    changes: dict[Change, int]  # images copied, resized, encoded or decoded; of shards not kept
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()  # what is remarkable about where they were

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to know of it."""
        done = ", ".join(f"{count} {change}" for change, count in self.changes.items() if count)
        kept = f"; {self.kept_shards} of the shards were there already" if self.kept_shards else ""
        yield (
            f"{self.split}: {self.images} images in {self.shards} shards, "
            f"{self.bytes / 2**20:.1f} MiB, in {self.folder}"
            + (f" ({done})" if done else "")
            + kept
        )
        for found in self.left_out:
            yield f"  left out {found.place}: {found.cause}"
        yield from (f"  {note}" for note in self.notes)


def pack_source(
    source: Source,
    out_dir: str | Path,
    split: Split,
    *,
    shard_bytes: int | None = None,
    shard_images: int | None = None,
    short_side: int | None = None,
    quality: int | None = None,
    raw: int | None = None,
    shuffle: bool = False,
    max_bad_images: int = 10,
    num_workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, images: None,
) -> PackReport:
    """Write the images of a source as tar shards of the WebDataset layout.

    Every sample is ``<number>.jpg`` (or png, webp…: files are copied as they are), ``<number>.cls``
    with the class number, and ``<number>.json`` with the path it came from (and the classes, where
    there may be several). Decoded pixels become PNG, unless ``raw`` asks for pixels. Every image is
    decoded once, so that what is in the shards can be read.

    Args:
      source: the images.
      out_dir: gets ``<split>-000000.tar`` and so on, the manifest, the class names and the index.
        Both splits may be packed into one.
      split: "train" or "val".
      shard_bytes: a shard ends with the image that reaches this size; None: 256 MiB, or 1 GiB of
        pixels.
      shard_images: end a shard after so many images instead.
      short_side: images whose shorter side is longer are resized to it, and encoded as JPEG.
      quality: of those JPEGs, 1 to 100; None: 92.
      raw: write decoded pixels, of images whose shorter side is longer than this made smaller. An
        image is ``<number>.raw.ppm`` then, or ``.raw.pgm`` if it is grey.
      shuffle: whether to mix the images, always in the same way.
      max_bad_images: unreadable images left out, before packing is given up.
      num_workers: threads; None: one per usable core.
      progress: told the images done and all of them, now and then.
    Raises: DataError if there are shards of another source or other options, too many images
      cannot be read, or the disk is full. Starting again continues.
    """
    folder = as_path(out_dir)
    check_options(shard_bytes, shard_images, short_side, quality, raw)
    if shard_bytes is None:
        shard_bytes = SHARD_BYTES if raw is None else RAW_SHARD_BYTES
    options = {
        "shard_bytes": shard_bytes if shard_images is None else None,
        "shard_images": shard_images,
        "short_side": short_side,
        "quality": None if short_side is None else quality or _QUALITY,
        "shuffle": shuffle,
        **({} if raw is None else {"raw": raw}),  # manifests of others stay as they were
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            packing = _Packing(source, folder, split, options, max_bad_images, progress)
            packing.run(count_workers(num_workers))
            return packing.finish()
    except OSError as error:
        raise disk_error(folder, error) from None


class _Packing:
    """The packing of one split."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        split: Split,
        options: dict[str, Any],
        max_bad_images: int,
        progress: Callable[[int, int], None],
    ) -> None:
        self.source, self.folder, self.split, self.options = source, folder, split, options
        self.max_bad_images, self.progress = max_bad_images, progress
        self.labels = np.asarray(source.labels)
        count = len(source)
        self.order = epoch_permutation(0, 0, count) if options["shuffle"] else np.arange(count)
        self.manifest = read_manifest(folder)
        before = self.manifest["splits"].get(split, {})
        facts = {"images": count, "source": _digest(source), "options": options}
        self._refuse_others(before, facts)
        self.entries: list[dict[str, Any]] = before.get("shards", [])
        self.state: dict[str, Any] = {"complete": False, **facts, "shards": self.entries}
        self.kept = 0
        self.changes: dict[Change, int] = {"copied": 0, "resized": 0, "encoded": 0}
        self.left_out: list[LeftOut] = []

    def _refuse_others(self, before: dict[str, Any], facts: dict[str, Any]) -> None:
        what = f"{self.folder} holds shards of '{self.split}'"
        if before:
            then, now = before["options"], facts["options"]
            differing = [
                _difference(name, then.get(name), now.get(name))
                for name in {**now, "raw": None}
                if then.get(name) != now.get(name)
            ]
            if before.get("source") != facts["source"]:
                differing.append(f"other images ({before.get('images')}, now {facts['images']})")
            if differing:
                raise DataError(
                    f"{what} that were packed otherwise: {', '.join(differing)}. Pack into another "
                    "folder, give the same options and images, or remove them first."
                )
        names = self.manifest.get("class_names")
        if self.manifest["splits"] and names != list(self.source.class_names):
            raise DataError(
                f"{self.folder} holds shards with {len(names or [])} classes; these images have "
                f"{len(self.source.class_names)}, or others. Pack into another folder."
            )
        known = len(before.get("shards", []))
        for path in self.folder.glob(f"{self.split}-*.tar"):
            number = path.stem.removeprefix(f"{self.split}-")
            # One more than listed may be there: it was finished, but not yet entered.
            if not number.isdigit() or int(number) > known:
                raise DataError(
                    f"{what} that {MANIFEST} does not list ({path.name}). Pack into another "
                    "folder, or remove them first."
                )

    def run(self, num_workers: int) -> None:
        """Keep the finished shards that are whole, and write the others."""
        # What an interruption left half written; nobody else writes here now.
        remove_unfinished(self.folder)
        for path in self.folder.glob(f"{self.split}-*.tar{PARTIAL}"):
            path.unlink()
        first, images = 0, len(self.source)
        for number, entry in enumerate(list(self.entries)):
            stop = entry["stop"]
            if find_damage(self.folder, entry) is None:
                self.left_out += [LeftOut(*found) for found in entry["left_out"]]
                self.kept += 1
            else:  # it is written again, to the same bytes
                self._write_shards(range(first, stop), number, num_workers, several=False)
            first = stop
            self.progress(first, images)
        if first < images:
            self._write_shards(range(first, images), len(self.entries), num_workers, several=True)

    def _write_shards(
        self, positions: range, number: int, num_workers: int, *, several: bool
    ) -> None:
        """Write the images at some positions into one shard, or into as many as they fill."""
        first = positions.start
        left_out: list[LeftOut] = []
        shard: ShardWriter | None = None
        try:
            for position, prepared in map_positions(self._prepare, positions, num_workers):
                if position % CHUNK == 0:
                    self.progress(position, len(self.source))
                if isinstance(prepared, LeftOut):
                    left_out.append(prepared)
                    self._count(prepared)
                    continue
                self.changes[prepared.change] = self.changes.get(prepared.change, 0) + 1
                shard = shard or ShardWriter(self.folder, f"{self.split}-{number:06}.tar")
                shard.add(f"{position:08}", prepared, *self._described(position))
                if several and self._is_full(shard):
                    self._enter(shard.finish(first, position + 1, left_out), number)
                    shard, left_out, first, number = None, [], position + 1, number + 1
            if shard is not None:
                self._enter(shard.finish(first, positions.stop, left_out), number)
            elif left_out and self.entries:  # nothing readable came after the last shard
                last = self.entries[-1]
                last.update(stop=positions.stop)
                last["left_out"] += [list(found) for found in left_out]
        finally:
            if shard is not None:
                shard.file.close()

    def _prepare(self, position: int) -> Prepared | LeftOut:
        index = int(self.order[position])
        try:
            raw = self.source.read(index)
            if "raw" in self.options:
                return prepare_pixels(raw, self.options["raw"])
            return prepare_image(raw, self.options["short_side"], self.options["quality"])
        except ImageError as error:
            return LeftOut(self.source.name(index), str(error))

    def _described(self, position: int) -> tuple[str, int | list[Any]]:
        """Return the path that an image came from, and its label."""
        index = int(self.order[position])
        label = self.labels[index]
        if self.labels.ndim == 1:
            return self.source.name(index), int(label)
        if np.isin(label, (0, 1)).all():
            return self.source.name(index), np.flatnonzero(label).tolist()
        return self.source.name(index), [float(value) for value in label]

    def _is_full(self, shard: ShardWriter) -> bool:
        if self.options["shard_images"] is not None:
            return bool(shard.samples >= self.options["shard_images"])
        return bool(shard.size >= self.options["shard_bytes"])

    def _count(self, found: LeftOut) -> None:
        self.left_out.append(found)
        count, limit = len(self.left_out), self.max_bad_images
        if count > limit:
            raise DataError(
                f"{found.place}: {found.cause}. That makes {count} unreadable images, more than "
                f"max_bad_images {limit} allows. Mend or remove them (`vitbase data check` names "
                "them all), or raise --max_bad_images."
            )

    def _enter(self, entry: dict[str, Any], number: int) -> None:
        self.entries[number : number + 1] = [entry]
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.manifest["class_names"] = list(self.source.class_names)
        self.manifest["splits"][self.split] = self.state
        write_json(self.folder / MANIFEST, self.manifest)

    def finish(self) -> PackReport:
        """Declare the split complete; write what goes with the shards."""
        images = sum(entry["samples"] for entry in self.entries)
        if not images:
            raise DataError("There is no image to pack: none can be read.")
        write_whole(self.folder / NAMES_FILE, listed(self.source.class_names))
        self.state.update(complete=True, num_samples=images)
        self._write_manifest()
        write_json(self.folder / INFO, {"splits": timm_splits(self.manifest["splits"])})
        open_shards(str(self.folder), self.split, "out_dir")  # reads them all, writes the index
        self.progress(len(self.source), len(self.source))
        return PackReport(
            folder=self.folder,
            split=self.split,
            images=images,
            shards=len(self.entries),
            bytes=sum(entry["bytes"] for entry in self.entries),
            kept_shards=self.kept,
            changes=self.changes,
            left_out=tuple(self.left_out),
            notes=self.source.notes,
        )


def check_options(
    shard_bytes: int | None,
    shard_images: int | None,
    short_side: int | None,
    quality: int | None,
    raw: int | None,
) -> None:
    """Raise a DataError for options that make no sense, by themselves or together."""
    if any(number is not None and number < 1 for number in (shard_bytes, shard_images)):
        raise DataError("--shard_bytes and --shard_images must be at least 1.")
    for name, side in (("short_side", short_side), ("raw", raw)):
        if side is not None and side < 1:
            raise DataError(f"--{name} {side}: expected at least 1 pixel.")
    if quality is not None and not 1 <= quality <= 100:
        raise DataError(f"--quality {quality}: expected 1 to 100.")
    for name, value in (("short_side", short_side), ("quality", quality)):
        if raw is not None and value is not None:
            raise DataError(
                f"--raw {raw} and --{name} {value}: pixels are not encoded, and --raw says their "
                f"shorter side itself. Leave out one of the two."
            )


def _difference(option: str, before: object, now: object) -> str:
    """Say how an option was given otherwise, by the name that the command line has for it."""
    values = [before, now]
    if option == "shard_bytes" and all(isinstance(v, int) and not v % 2**20 for v in values):
        option, values = "shard_megabytes", [v >> 20 for v in values if isinstance(v, int)]
    first, second = ("none" if value is None else str(value) for value in values)
    return f"{option} {first} instead of {second}"


def _digest(source: Source) -> str:
    """Return a digest of what a source lists: classes, labels and paths."""
    digest = hashlib.blake2b(digest_size=16)
    labels: NDArray[Any] = np.ascontiguousarray(source.labels)
    digest.update(json.dumps([*source.class_names, str(labels.dtype), *labels.shape]).encode())
    digest.update(labels.tobytes())
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    return digest.hexdigest()
