"""Which way was found to be fastest for a model on a machine: kept where `auto` looks for it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vitbase.files import cache_folder, json_line, read_json, write_whole
from vitbase.runtime import Runtime
from vitbase.shipping.running.kept import fingerprint, versions
from vitbase.weights.load import LoadedModel

_LONGEST = 1 << 20


def keep_finding(
    loaded: LoadedModel, runtime: Runtime, best: Mapping[int, str], told: Mapping[str, Any]
) -> Path | None:
    """Keep the fastest way of full precision for each size of batch.

    Args:
      best: its name, by size of batch.
      told: all that was measured.
    Returns: the file; None where nothing can be kept.
    """
    place = _place(loaded, runtime)
    if place is None:
        return None
    content = {"best": {str(batch): name for batch, name in best.items()}, "measured": told}
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json_line(content, indent=1) + "\n")
    except OSError:
        return None
    return place


def find_best(loaded: LoadedModel, runtime: Runtime, batch_size: int) -> str | None:
    """Return the name of the fastest way that was found for a model on this machine.

    Args:
      batch_size: that it is for; of those measured, the largest that is no larger counts.
    """
    folder = _folder()
    if folder is None or not folder.is_dir():
        return None  # so the weights need not be read for their digest
    place = _place(loaded, runtime)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        assert place is not None
        best = {int(batch): str(name) for batch, name in _read(place)["best"].items()}
        fitting = [batch for batch in best if batch <= batch_size]
        return best[max(fitting) if fitting else min(best)]
    return None


def _read(place: Path) -> Any:
    return read_json(place, longest=_LONGEST)


def _folder() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / "bench"


def _place(loaded: LoadedModel, runtime: Runtime) -> Path | None:
    folder = _folder()
    if folder is None:
        return None
    facts = (fingerprint(loaded), runtime.machine, sorted(versions().items()))
    key = blake2b(repr(facts).encode(), digest_size=16)
    return folder / f"{key.hexdigest()}.json"
