"""What packing leaves on the disk: shards, and the manifest that tells their checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vitbase.curation.packing.images import Prepared
from vitbase.disk import as_path
from vitbase.errors import DataError
from vitbase.files import json_line, read_json, sha256_of, write_whole
from vitbase.sources.shards.layout import MANIFEST

PARTIAL = ".partial"


class LeftOut(NamedTuple):
    """An image that could not be read: where it is, and why."""

    place: str
    cause: str


@dataclass
class ShardWriter:
    """A shard that is being written."""

    folder: Path
    name: str
    samples: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def __post_init__(self) -> None:
        self.partial = self.folder / (self.name + PARTIAL)
        self.file = open(self.partial, "wb")  # noqa: SIM115 (closed by finish, or by who gives up)

    def add(self, key: str, image: Prepared, origin: str, label: int | list[Any]) -> None:
        """Write the members of a sample."""
        described: dict[str, Any] = {"filename": origin}
        self._member(f"{key}.{image.suffix}", image.data)
        if isinstance(label, int):
            self._member(f"{key}.cls", str(label).encode())
        else:
            described["label"] = label
        self._member(f"{key}.json", json.dumps(described).encode())
        self.samples += 1

    def _member(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # its time, owner and group are zero
        info.size = len(content)
        info.mode = 0o644
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        self._write(info.tobuf(tarfile.USTAR_FORMAT), content, padding)

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            self.file.write(part)
            self.digest.update(part)
            self.size += len(part)

    def finish(self, first: int, stop: int, left_out: Iterable[LeftOut]) -> dict[str, Any]:
        """End the shard, and give it its name. Returns: its entry in the manifest."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.partial, self.folder / self.name)
        return {
            "name": self.name,
            "bytes": self.size,
            "sha256": self.digest.hexdigest(),
            "samples": self.samples,
            "first": first,
            "stop": stop,
            "left_out": [list(found) for found in left_out],
        }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, empty if there is none. Raises: DataError."""
    path = folder / MANIFEST
    try:
        found = read_json(path)
        for split in found["splits"].values():
            split["options"], [(e["first"], e["stop"], e["samples"]) for e in split["shards"]]
    except FileNotFoundError:
        return {"splits": {}}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is not a manifest of packed shards. Pack into another folder, or remove it."
        ) from None
    result: dict[str, Any] = found
    return result


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(path, json_line(content, indent=1) + "\n")


def find_damage(folder: Path, entry: dict[str, Any]) -> str | None:
    """Say what is wrong with a shard of the manifest, or return None."""
    path = folder / entry["name"]
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"has {size:,} bytes instead of {entry['bytes']:,}"
        digest = sha256_of(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return None if digest == entry["sha256"] else "does not match its checksum"


def find_damaged_shards(folder: Path, split: str) -> Iterator[tuple[Path, str]]:
    """Yield the packed shards of a split that differ from the manifest, and how.

    Nothing is known of shards that another program wrote.
    """
    with suppress(DataError, NotADirectoryError):
        for entry in read_manifest(folder)["splits"].get(split, {}).get("shards", []):
            damage = find_damage(folder, entry)
            if damage is not None:
                yield folder / entry["name"], damage


def timm_splits(splits: dict[str, Any]) -> dict[str, Any]:
    """Return the finished splits in the words of timm's reader."""
    return {
        {"val": "validation"}.get(name, name): {
            "name": {"val": "validation"}.get(name, name),
            "num_samples": split["num_samples"],
            "filenames": [entry["name"] for entry in split["shards"]],
            "shard_lengths": [entry["samples"] for entry in split["shards"]],
        }
        for name, split in splits.items()
        if split["complete"]
    }


def verify_shards(
    folder: str | Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Compare every packed shard with its checksum.

    Args:
      folder: that was packed into.
      progress: told the bytes done and all of them, after each shard.
    Returns: how many shards are whole.
    Raises: DataError naming the first shard that is missing or differs.
    """
    folder = as_path(folder)
    manifest = read_manifest(folder)
    if not manifest["splits"]:
        raise DataError(f"{folder}: there is no {MANIFEST}; it tells the checksums to verify.")
    entries = [entry for split in manifest["splits"].values() for entry in split["shards"]]
    total, done = sum(entry["bytes"] for entry in entries), 0
    for entry in entries:
        damage = find_damage(folder, entry)
        if damage is not None:
            raise DataError(f"{folder / entry['name']} {damage}. Fetch it, or pack it, again.")
        done += entry["bytes"]
        progress(done, total)
    return len(entries)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder; it ends with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder} is being packed into by another process. Wait until it is done."
            ) from None
        yield
    finally:
        os.close(descriptor)


def disk_error(folder: Path, error: OSError) -> DataError:
    """Say what to do about a failure to write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"{folder}: the disk is full. Free some space and start the same command again: "
            "finished shards are kept."
        )
    return DataError(
        f"Cannot write to {folder}: {error.strerror or error}. Pack into a folder that can be "
        "written."
    )
