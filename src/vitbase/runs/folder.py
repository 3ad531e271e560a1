"""A run on disk: checkpoints that appear whole or not at all, and what a run resumes from.

Numbers (position, loss scale, best so far) are in `progress.json`. The position is that of the last
update taken: data order and randomness are functions of it, so nothing else is kept. Tensors are
written by those who are passed in: nothing here knows torch.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitbase.config.config import Config, differences_on_resume, load_config
from vitbase.errors import CheckpointError, ConfigError
from vitbase.files import (
    LONGEST_JSON,
    parse_json,
    read_json,
    remove_unfinished,
    write_whole,
    written_whole,
)
from vitbase.runs import checkpoints
from vitbase.runs.checkpoints import PROGRESS_FILE, STATE_FILE, Checkpoint
from vitbase.runs.lock import RunLock


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint so far on the evaluation images; the earlier of two equals."""

    checkpoint: str
    score: float
    score_name: str = "eval_top1"

    @property
    def epoch(self) -> int:
        """The epoch that it was taken after. Raises: CheckpointError if its name does not tell."""
        match = checkpoints.NAME.match(self.checkpoint)
        if match is None:
            raise CheckpointError(f"The best checkpoint is called {self.checkpoint}.")
        return int(match["epoch"])


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: everything about its state that is not a tensor.

    Attributes:
      closed: whether all that is due at this place was done: the evaluation, at an epoch's end.
    """

    updates: int
    global_batch: int
    loss_scaler: dict[str, Any]
    best: Best | None
    finished: bool
    closed: bool = True


class RunFolder:
    """The folder of one run: configuration, metrics, checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self._lock = RunLock(path)
        self._seen: list[Checkpoint] | None = None

    def read_config(self) -> Config | None:
        """Return the configuration of the run that is here, or None.

        A run that never reached a checkpoint left nothing to go on from: it is none.
        """
        begun = self.config_file.is_file() and checkpoints.list_checkpoints(self.checkpoints)
        return load_config(str(self.config_file)) if begun else None

    def check(self, config: Config) -> None:
        """Check that `config` continues the run that is here, if there is one.

        Raises: ConfigError if the run here differs in an option that moves its numbers, or
          `resume` is off.
        """
        saved = self.read_config()
        if saved is not None:
            if not config.run.resume:
                raise ConfigError(
                    f"{self.path} holds a run already. Choose another --output_dir, remove it, "
                    f"or continue it with --resume True."
                )
            differences = differences_on_resume(saved, config)
            if differences:
                raise ConfigError(
                    f"{self.path} holds a run with other options:",
                    *(f"  {difference}" for difference in differences),
                    "Give the same options to continue it, or another --output_dir.",
                )

    def start(self, config: Config) -> None:
        """Create the folder, or clean up what an interruption left in it, as its only writer.

        Raises: CheckpointError if it cannot be written, or another command writes it.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            if self._seen is not None and self._seen != self._list():
                self.close()
                raise CheckpointError(
                    f"Another command has gone on with the run in {self.path} meanwhile: give the "
                    f"same command again."
                )
            for folder in (self.path, self.checkpoints):
                remove_unfinished(folder)
            write_whole(self.config_file, config.to_toml())
        except OSError as error:
            raise CheckpointError(
                f"Cannot write the run folder {self.path}: {error.strerror}. "
                f"Choose another --output_dir."
            ) from None

    def close(self) -> None:
        """Let others write the folder."""
        self._lock.release()

    def _list(self) -> list[Checkpoint]:
        return checkpoints.list_checkpoints(self.checkpoints)

    def newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest undamaged checkpoint, and a line per damaged one passed over."""
        warnings: list[str] = []
        found = self._list()
        if self._seen is None:
            self._seen = found
        for checkpoint in reversed(found):
            damage = checkpoints.find_damage(checkpoint.path)
            if damage is None:
                return checkpoint, warnings
            warnings.append(
                f"Checkpoint {checkpoint.path.name} is damaged ({damage}); using an earlier one."
            )
        return None, warnings

    def save(
        self,
        name: str,
        write_tensors: Callable[[Path], None],
        progress: Progress,
    ) -> Path:
        """Write a checkpoint beside, sync it, and rename it into place.

        Args:
          write_tensors: writes weights and training state into the folder that it is given.
        """
        final = self.checkpoints / name
        with written_whole(final) as writing:
            writing.mkdir()
            write_tensors(writing)
            numbers = json.dumps(dataclasses.asdict(progress), indent=1, sort_keys=True)
            (writing / PROGRESS_FILE).write_text(numbers + "\n", encoding="utf-8")
            checkpoints.write_manifest(writing)
            if final.exists():  # a damaged one that the run has passed again
                shutil.rmtree(final)
        if progress.best is not None:
            found = progress.best
            best = json.dumps({"checkpoint": found.checkpoint, found.score_name: found.score})
            write_whole(self.checkpoints / checkpoints.BEST_FILE, best + "\n")
        return final

    def prune(self, keep: int, best: Best | None) -> None:
        """Remove all but the newest `keep` checkpoints and the best one."""
        for checkpoint in checkpoints.list_checkpoints(self.checkpoints)[:-keep]:
            if best is None or checkpoint.path.name != best.checkpoint:
                shutil.rmtree(checkpoint.path)

    def prune_files(self, suffix: str, keep: int) -> None:
        """Keep in the run folder only the newest `keep` files that are named as checkpoints."""
        for checkpoint in checkpoints.list_checkpoints(self.path, suffix)[:-keep]:
            checkpoint.path.unlink()

    def cut_metrics_back(self, updates: int) -> None:
        """Drop the rows after an update, so that a resumed run writes each step once."""
        if not self.metrics_file.is_file():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                if parse_json(line)["step"] <= updates:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that an interruption cut short
        write_whole(self.metrics_file, "".join(kept))

    def read_last_evaluation(self) -> dict[str, Any] | None:
        """Return the last evaluation row of `metrics.jsonl`."""
        rows = []
        if self.metrics_file.is_file():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                if '"eval_loss"' in line:
                    rows.append(parse_json(line))
        return rows[-1] if rows else None


def read_progress(checkpoint: Path) -> Progress:
    """Read the numbers of a checkpoint. Raises: CheckpointError if they are damaged."""
    try:
        path = checkpoint / PROGRESS_FILE
        fields = read_json(path) if path.is_file() else _read_inside(checkpoint / STATE_FILE)
        best = fields.pop("best")
        return Progress(best=Best(**best) if best else None, **fields)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"Checkpoint {checkpoint} has no progress to go on from: {error}."
        ) from None


def _read_inside(state: Path) -> Any:
    """Read the numbers where version 0.1.0 kept them: in the metadata of the training state.

    A safetensors file begins with the length of a JSON header, which has the metadata.
    """
    with state.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(min(length, LONGEST_JSON + 1)))
    return parse_json(header["__metadata__"]["vitbase"])
