"""Predictions in a file: kept as they come in one beside, which a later start goes on from.

`out.csv.part` is JSON lines: first what the rows are of (weights, images, options), then a row for
each image, in order. When all are there, the file itself appears, whole, and that one goes.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from vitbase.disk import open_regular
from vitbase.errors import ConfigError, DataError
from vitbase.evaluation.classifier import Classifier
from vitbase.evaluation.parquet import load_pyarrow
from vitbase.files import LONGEST_JSON, json_line, parse_json, plain_name, sha256_of, written_whole
from vitbase.shipping.predict import UNSURE, Prediction
from vitbase.sources.source import Source

PART = ".part"
_VERSION = 1
_ROW_GROUP = 1 << 14


def facts_of(
    classifier: Classifier, source: Source, *, top: int, unsure: float | None
) -> dict[str, Any]:
    """Return what rows are of: half of them belong to the other half if it is the same.

    Raises: DataError if the weights cannot be read any more.
    """
    images = hashlib.blake2b(digest_size=16)
    for index, row in enumerate(source.rows.tolist()):
        images.update(os.fsencode(f"{source.describe(index)}\0{source.images.size(row)}\0"))
    path = Path(classifier.path)
    try:
        weights = sha256_of(path)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}") from None
    return {
        "version": _VERSION,
        "weights": weights,
        "images": images.hexdigest(),
        "count": len(source),
        "top": min(top, classifier.num_classes),
        UNSURE: unsure,
        "temperature": classifier.temperature,
        "runtime": classifier.runtime,
        "preprocess": classifier.preprocess.model_dump(mode="json"),
        "classes": hashlib.blake2b(json.dumps(classifier.class_names).encode()).hexdigest(),
    }


def check_out(out: Path) -> None:
    """Check that a file can be written as its name says, before anything is computed.

    Raises: ConfigError saying what to do.
    """
    suffix = out.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(f"--out {out}: call the file {', '.join(FORMATS)}, as it is to be.")
    if os.path.lexists(out):
        what = "a folder" if out.is_dir() else "there already"
        raise ConfigError(f"--out {out} is {what}: give another name, or remove it.")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.")
    if suffix == ".parquet":
        load_pyarrow(out)


class Output:
    """A file of predictions that is being written, from entering until leaving.

    Args:
      out: the file.
      facts: of :func:`facts_of`.
    Raises: on entering, DataError if half of another output is there, another process writes it, or
      the folder cannot be written.
    """

    def __init__(self, out: Path, facts: Mapping[str, Any]) -> None:
        self.out, self.facts = out, dict(facts)
        self.part = out.with_name(out.name + PART)
        self.done = 0
        """Rows that are there."""
        self._file: BinaryIO
        self._first = 0  # byte at which rows begin

    def __enter__(self) -> Self:
        with self._told():
            descriptor = open_regular(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            self._file = os.fdopen(descriptor, "r+b")
        try:
            with self._told():
                self._begin()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _begin(self) -> None:
        """Take the file for this process, and cut back what is no whole row of this output."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.part} is being written by another process: wait until it is done."
            ) from None
        before = self._read_row()
        if before is None:
            if self._file.seek(0, os.SEEK_END):
                raise self._strange()
            self._write(self.facts)
        else:
            self._refuse_other(before)
        end = self._first = self._file.tell()
        while (row := self._read_row()) is not None and self.done < self.facts["count"]:
            try:
                Prediction.from_dict(row)
            except ValueError:
                break
            self.done += 1
            end = self._file.tell()
        self._file.truncate(end)
        self._file.seek(end)

    def _refuse_other(self, before: Any) -> None:
        if not isinstance(before, dict) or before.get("version") != _VERSION:
            raise self._strange()
        differing = [
            _difference(name, before.get(name), value)
            for name, value in self.facts.items()
            if before.get(name) != value
        ]
        if differing:
            raise DataError(
                f"{self.part} is half of another output: {', '.join(dict.fromkeys(differing))}. "
                f"Give the same again to go on with it, remove it, or give another --out."
            )

    def _strange(self) -> DataError:
        return DataError(f"{self.part} is no beginning of {self.out.name}: move it away.")

    def add(self, found: Prediction) -> None:
        """Keep a row. Raises: DataError if it cannot be written."""
        with self._told():
            self._write(found.to_dict())
        self.done += 1

    def rows(self) -> Iterator[Prediction]:
        """Yield the rows that are there, and stay where new ones are added."""
        with self._told(), open(self.part, "rb", opener=open_regular) as file:
            file.seek(self._first)
            for line in itertools.islice(file, self.done):
                yield Prediction.from_dict(parse_json(line))

    def finish(self) -> None:
        """Write the file itself, and remove the one beside. Raises: DataError."""
        with self._told():
            with written_whole(self.out) as place:
                FORMATS[self.out.suffix.lower()](place, self.rows(), self.facts)
            self.part.unlink(missing_ok=True)

    def _read_row(self) -> Any:
        """Read a line; None if there is none that is whole."""
        line = self._file.readline(LONGEST_JSON)
        try:
            return parse_json(line) if line.endswith(b"\n") else None
        except ValueError:
            return None

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write((json_line(row) + "\n").encode())
        self._file.flush()  # so that as much is there as was said, whatever ends this process

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            again = ""
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                again = " Free some space, and give the same command again: it goes on."
            raise DataError(
                f"Cannot write --out {self.out}: {error.strerror or error}.{again}"
            ) from None


def _difference(name: str, before: object, now: object) -> str:
    if name in {"weights", "images", "classes", "preprocess"}:
        return f"other {'image sizes' if name == 'preprocess' else name}"
    if name == "count":
        return f"{before} images instead of {now}"
    return f"{name} {'none' if before is None else before} instead of {now}"


# What becomes of the rows


def _as_row(found: Prediction, top: int) -> list[Any]:
    """Return the values of :func:`_columns`, None where there is none."""
    pairs = [*found.classes, *[(None, None)] * (top - len(found.classes))]
    best = pairs[0][1]
    named = [value for name, p in pairs for value in (name and plain_name(name), p)]
    chosen = found.chosen and plain_name(found.chosen)
    unsure = None if found.error is not None else found.unsure
    return [plain_name(found.image), chosen, best, unsure, found.error, *named]


def _columns(top: int) -> list[str]:
    ranked = [name for number in range(1, top + 1) for name in (f"class{number}", f"p{number}")]
    return ["image", "class", "probability", UNSURE, "error", *ranked]


def _write_jsonl(place: Path, rows: Iterator[Prediction], facts: Mapping[str, Any]) -> None:
    with open(place, "w", encoding="utf-8") as file:
        file.writelines(json_line(found.to_dict()) + "\n" for found in rows)


def _write_csv(place: Path, rows: Iterator[Prediction], facts: Mapping[str, Any]) -> None:
    with open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_columns(facts["top"]))
        writer.writerows(_as_row(found, facts["top"]) for found in rows)


def _write_parquet(place: Path, rows: Iterator[Prediction], facts: Mapping[str, Any]) -> None:
    pa, parquet = load_pyarrow(place)
    names = _columns(facts["top"])
    kinds = [
        pa.bool_()
        if name == UNSURE
        else pa.float32()
        if name == "probability" or (name[:1] == "p" and name[1:].isdecimal())
        else pa.string()
        for name in names
    ]
    schema = pa.schema(zip(names, kinds, strict=True), {b"vitbase": json_line(facts).encode()})
    with parquet.ParquetWriter(place, schema, compression="zstd") as writer:
        while some := [
            _as_row(found, facts["top"]) for found in itertools.islice(rows, _ROW_GROUP)
        ]:
            columns = [pa.array(c, k) for c, k in zip(zip(*some, strict=True), kinds, strict=True)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


FORMATS: dict[str, Callable[[Path, Iterator[Prediction], Mapping[str, Any]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
"""What writes a file, by what its name ends in."""
