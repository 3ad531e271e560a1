"""Which updates of a run were not applied: what a run that goes on must know beside its checkpoint.

Updates are counted from 0 here, and from 1 in the file, as log lines count them.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from vitbase.errors import CheckpointError
from vitbase.files import read_json, write_whole

PASSED_OVER_FILE = "passed_over.json"
_REMEMBERED = 1000


@dataclasses.dataclass(frozen=True)
class PassedOver:
    """The updates that a run has passed over.

    Attributes:
      nonfinite: numbers of the last updates whose loss or gradient was no number, rising.
      rewinds: (checkpoint, to) pairs: at the place of the checkpoint, after so many updates, the
        run goes on at the place after `to` updates.
    """

    nonfinite: tuple[int, ...] = ()
    rewinds: tuple[tuple[int, int], ...] = ()

    def beyond(self, updates: int) -> int:
        """Return where a run goes on that has come to a place."""
        return max([updates, *(to for back, to in self.rewinds if back <= updates < to)])

    def row_before(self, updates: int) -> tuple[int, ...]:
        """Return the updates without a number that led to a place, one after the other."""
        begun = max((to for _, to in self.rewinds if to <= updates), default=0)
        known, first = {*self.nonfinite}, updates
        while first > begun and first - 1 in known:
            first -= 1
        return tuple(range(first, updates))

    def with_nonfinite(self, update: int) -> PassedOver:
        """Return a copy with one more update whose loss or gradient was no number."""
        found = sorted({*self.nonfinite, update})[-_REMEMBERED:]
        return dataclasses.replace(self, nonfinite=tuple(found))

    def with_rewind(self, back: int, to: int) -> PassedOver:
        """Return a copy with one more way back to a checkpoint, and on from a later place."""
        return dataclasses.replace(self, rewinds=(*self.rewinds, (back, to)))

    def cut_back(self, updates: int) -> PassedOver:
        """Return a copy without what is met again by a run that goes on from a place."""
        kept = tuple(update for update in self.nonfinite if update < updates)
        return dataclasses.replace(self, nonfinite=kept)

    def write(self, run: Path) -> None:
        """Write it into a run folder."""
        content = {
            "nonfinite_updates": [update + 1 for update in self.nonfinite],
            "rewinds": [
                {"checkpoint_after_update": back, "first": back + 1, "last": to}
                for back, to in self.rewinds
            ],
        }
        write_whole(run / PASSED_OVER_FILE, json.dumps(content, indent=1) + "\n")


def read_passed_over(run: Path) -> PassedOver:
    """Read what a run folder has of it; nothing is none. Raises: CheckpointError if damaged."""
    path = run / PASSED_OVER_FILE
    if not path.is_file():
        return PassedOver()
    try:
        content = read_json(path)
        return PassedOver(
            tuple(_counted(update) - 1 for update in content["nonfinite_updates"]),
            tuple(
                (_counted(found["checkpoint_after_update"]), _counted(found["last"]))
                for found in content["rewinds"]
            ),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not say which updates the run has passed over ({error}). Take it from a "
            f"copy, or remove it: the run then goes on as if it had passed over none."
        ) from None


def _counted(number: object) -> int:
    if type(number) is not int or number < 1:
        raise ValueError(f"{number!r} is no number of updates")
    return number
