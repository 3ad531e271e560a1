"""Weights -> a folder that other systems open by their own means, with its card; whole, or none."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vitbase.console import printable
from vitbase.disk import as_path
from vitbase.errors import ConfigError, DataError, WeightsError, nearest
from vitbase.files import plain_name, write_whole, written_whole
from vitbase.model.spec import ViTSpec
from vitbase.runs.checkpoints import find_run_folder, is_own_weights
from vitbase.shipping.publishing.card import Subject, write_card
from vitbase.shipping.publishing.figures import draw_pictures
from vitbase.shipping.publishing.licence import Licence, find_licence, spelled_otherwise
from vitbase.shipping.publishing.told import last_name, tell
from vitbase.weights.convert import TOLERANCE, Conversion, convert_weights
from vitbase.weights.hub import PREFIX
from vitbase.weights.load import open_weights
from vitbase.weights.origins.dialect import Dialect
from vitbase.weights.origins.registry import DIALECTS
from vitbase.weights.origins.usage import OURS
from vitbase.weights.save import choose_dialect

CARD = "README.md"
_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Published:
    """A folder that was written, or would be.

    Attributes:
      dialect: whose names the weights have, by the name of a library.
      files: names and bytes, in order.
      opened_by: what opens the folder by its own means, first whose it is.
      opened_in: what has opened it here, with its version; None: vitbase, as that computes.
      difference: largest of outputs, opened so, on random images.
      notes: what whoever publishes it should know.
    """

    weights: Path
    dialect: str
    files: tuple[tuple[str, int], ...]
    opened_by: tuple[str, ...]
    opened_in: str | None
    difference: float
    licence: Licence | None
    notes: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """Yield what a person wants to read of it."""
        yield f"Weights: {self.weights}"
        how = "equal bit for bit" if self.difference == 0 else f"bound: {TOLERANCE:g}"
        where = f"in {self.opened_in}" if self.opened_in else f"as {self.dialect} computes"
        yield (
            f"Opened again {where}: outputs on 4 random images differ by at most "
            f"{self.difference:.2g} ({how})."
        )
        yield f"Opens in: {', '.join(self.opened_by)}"
        yield from (f"Note: {note}" for note in self.notes)

    def sizes(self) -> Iterator[str]:
        """Yield a line for each file."""
        width = max(len(name) for name, _ in self.files)
        for name, size in self.files:
            yield f"  {name:<{width}}  {_spoken(size):>9}"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "weights": plain_name(str(self.weights)),
            "files": dict(self.files),
            "opened_by": [*self.opened_by],
            "opened_in": self.opened_in,
            "difference": self.difference,
            "license": None if self.licence is None else self.licence.name,
            "notes": [plain_name(note) for note in self.notes],
        }


def _spoken(size: int) -> str:
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= length:
            return f"{size / length:.1f} {unit}"
    return f"{size} bytes"


def write_folder(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dialect: str | None = None,
    repo: str | None = None,
    name: str | None = None,
    license: str | None = None,
    num_heads: int | None = None,
    allow: Sequence[str] = (),
) -> Published:
    """Write weights as another system's folder, with configuration, labels, card and figures.

    Args:
      checkpoint: anything `checkpoint_path` takes; of a run, its newest checkpoint.
      out: a folder that is not there yet.
      dialect: timm, hf (or transformers) or vitbase; None: the first of them that has such a
        network.
      repo: `owner/name` on the hub that it is for; None: the card's code opens the folder.
      name: of the model; None: the repository's, or the run's.
      license: of the weights; None: what their file tells, or none.
      num_heads: where the weights do not tell.
      allow: what the other system may compute otherwise, as of `convert_weights`.
    Returns: what was written; the outputs were compared with the model's before there is a folder.
    Raises: WeightsError if the dialect cannot express the model, or it has no head; ConfigError for
      an option; CheckpointError or DataError for what lies in the run; DataError if the folder is
      there already, or cannot be written.
    """
    place = as_path(out)
    if os.path.lexists(place):
        raise DataError(f"{place} exists already. Choose another name, or remove it.")
    asked = None if dialect is None else find_system(dialect)
    opened = open_weights(checkpoint, num_heads=num_heads)
    licence = find_licence(license, opened.file.metadata)
    told = tell(checkpoint, opened)
    _check_head(checkpoint, opened.spec.num_classes)
    system, reasons = choose_system(opened.spec, allow) if asked is None else (asked, ())
    _check_expressible(system, opened.spec, allow)
    code = system.code(opened.spec)
    libraries = {code.library: code.usage} if code else {}
    libraries |= system.opened_by
    called = name or (repo.rpartition("/")[2] if repo else _name_of(checkpoint, opened.path))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as beside:
            beside.mkdir()
            done = _convert(opened.path, beside, place, system, num_heads, allow)
            scored = None if told.evaluated is None else told.evaluated.scored
            pictures, why = draw_pictures(told.run, scored)
            subject = Subject(
                called,
                repo or place.name,
                repo is not None,
                opened.spec,
                opened.preprocess,
                opened.labels or (),
                sum(value.numel() for value in done.loaded.model.parameters()),
                libraries,
                code.file if code else None,
            )
            for picture in pictures:
                target = beside / picture.name
                target.parent.mkdir(exist_ok=True)
                write_whole(target, picture.png)
            write_whole(beside / CARD, write_card(subject, told, licence, pictures))
            files = tuple(sorted(_sizes(beside)))
    except OSError as error:
        raise DataError(f"Cannot write {place}: {error.strerror or error}.") from None
    notes = [*reasons, *told.notes, *([why] if why else [])]
    notes += _about(licence, opened.labels, done)
    if code is not None:
        notes.append(
            f"{code.library} opens it by {code.file} in the folder, and runs that file where "
            "trust_remote_code=True says so; the card tells how."
        )
    return Published(
        opened.path,
        _library(system),
        files,
        tuple(dict.fromkeys((*libraries, "vitbase"))),
        done.opened_in,
        done.difference,
        licence,
        tuple(notes),
    )


def _convert(
    weights: Path,
    folder: Path,
    place: Path,
    system: Dialect,
    num_heads: int | None,
    allow: Sequence[str],
) -> Conversion:
    """Write weights and what stands beside them into a folder that is at another place later."""
    inside = folder / _library(system)  # as the notes call it
    try:
        done = convert_weights(
            weights, inside, dialect=system.name, num_heads=num_heads, allow=allow
        )
    except WeightsError as error:
        raise WeightsError(str(error).replace(str(inside), str(place))) from None
    for path in inside.iterdir():
        path.rename(folder / path.name)
    inside.rmdir()
    return done


def list_systems() -> list[Dialect]:
    """Return whose folders are written: first what most libraries open, and last our own."""
    known = [table for table in DIALECTS if table.opened_by]
    return sorted(known, key=lambda table: (table.opened_by == OURS, -len(table.opened_by)))


def choose_system(spec: ViTSpec, allow: Sequence[str]) -> tuple[Dialect, tuple[str, ...]]:
    """Choose the first system that has such a network.

    Returns: a table of it, and a note why not those before it, if it is not the first.
    Raises: WeightsError if none has.
    """
    reasons: dict[str, str] = {}
    for table in list_systems():
        try:
            chosen = choose_dialect(table.name, spec, "", allow)
        except WeightsError as error:
            reasons.setdefault(table.name, str(error))
            continue
        because = f"The folder is one of --dialect {chosen.name}: {' '.join(reasons.values())}"
        return chosen, (because,) if reasons else ()
    raise WeightsError(" ".join(reasons.values()))


def find_system(name: str) -> Dialect:
    """Find whose folders are written, by the dialect's name or that of what opens it.

    Returns: a table of it; it may have others.
    Raises: ConfigError if there is none, or the hub has no place for its weights.
    """
    known = list_systems()
    asked = name.strip().lower()
    by_name = [table for table in known if asked == table.name]
    found = by_name or [table for table in known if asked == _library(table)]
    if found:
        return found[0]
    names = list(dict.fromkeys(each for table in known for each in (table.name, *table.opened_by)))
    convert = any(asked == table.name for table in DIALECTS)
    hint = " `vitbase weights convert` writes its files." if convert else nearest(asked, names)
    raise ConfigError(
        f"Option 'dialect' is {printable(name)}: no folder of it opens by itself; "
        f"there are {', '.join(names)}.{hint}"
    )


def _library(system: Dialect) -> str:
    return next(iter(system.opened_by))


def _check_head(checkpoint: str | Path, classes: int) -> None:
    if not classes:
        raise WeightsError(
            f"{checkpoint} has no head: it gives features, and tells no classes apart. A folder to "
            f"share is of a classifier; `vitbase weights convert` writes others."
        )


def _check_expressible(system: Dialect, spec: ViTSpec, allow: Sequence[str]) -> None:
    """Raises: WeightsError that names what the system lacks, and who has it."""
    try:
        choose_dialect(system.name, spec, "", allow)
    except WeightsError as error:
        others = dict.fromkeys(
            table.name
            for table in list_systems()
            if table.name != system.name and not table.problems(spec, table.said_in(""))
        )
        hint = f" It can be shared with --dialect {' or '.join(others)}." if others else ""
        raise WeightsError(f"{error}{hint}") from None


def _name_of(checkpoint: str | Path, weights: Path) -> str:
    """Return what a model is called where nobody has named it: as its run, file or repository."""
    if str(checkpoint).startswith(PREFIX):
        return last_name(str(checkpoint).removeprefix(PREFIX).partition("@")[0])
    run = find_run_folder(weights) if is_own_weights(weights) else None
    if run is not None:
        return run.resolve().name
    return weights.resolve().parent.name if weights.name == _WEIGHTS else weights.stem


def _about(
    licence: Licence | None, labels: tuple[str, ...] | None, done: Conversion
) -> Iterator[str]:
    if licence is None:
        yield (
            "No licence is known: the card says so, and nobody may use the weights without asking. "
            "Give yours with --license, such as apache-2.0."
        )
    elif hint := spelled_otherwise(licence):
        yield f"The hub has no licence '{licence.name}'; the card calls it another one.{hint}"
    if not labels:
        yield "The weights have no names of classes: whoever opens the folder sees numbers."
    yield from done.notes
    for field, before, after in done.changed:
        yield f"{done.dialect} computes with {field} {after}, the original with {before}."


def _sizes(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size
