"""A run on disk: checkpoints that appear whole or not at all, and what a run resumes from.

Numbers (position, loss scale, best so far) are in `progress.json`. The position is that of the last
update taken: data order and randomness are functions of it, so nothing else is kept. Tensors are
written by those who are passed in: nothing here knows torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from vitbase.config.config import Config, differences_on_resume, load_config
from vitbase.errors import CheckpointError, ConfigError
from vitbase.files import listed, remove_unfinished, write_whole
from vitbase.runs import checkpoints
from vitbase.runs.checkpoints import Checkpoint
from vitbase.runs.faults import naming, naming_faults
from vitbase.runs.identity import (
    RUN_ID_FILE,
    find_stranger,
    new_run_id,
    read_run_id,
    run_id_text,
)
from vitbase.runs.lock import RunLock
from vitbase.runs.passed_over import PASSED_OVER_FILE
from vitbase.runs.places import check_place
from vitbase.runs.progress import read_progress
from vitbase.runs.rows import cut_rows_back, find_evaluation


class RunFolder:
    """The folder of one run: configuration, metrics, checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / checkpoints.CONFIG_FILE
        self.metrics_file = path / "metrics.jsonl"
        self.held_out_file = path / "held_out.txt"
        self.checkpoints = path / checkpoints.CHECKPOINTS
        self._lock = RunLock(path)
        self._seen: list[Checkpoint] | None = None
        self.run_id: str | None = None
        self._run_name: str | None = None  # of the run that is here already

    def naming_faults(self) -> contextlib.AbstractContextManager[None]:
        """Turn what the disk refuses while the run writes here into a CheckpointError."""
        return naming_faults(self.path)

    def check_place(self, run_name: str) -> None:
        """Check that a run could be written here, before anything is done for it.

        Raises: ConfigError if the system takes no such path.
        """
        check_place(self.path, run_name)

    def read_config(self) -> Config | None:
        """Return the configuration of the run that is here, or None.

        A run that never reached a checkpoint left nothing to go on from: it is none.

        Raises: CheckpointError if there are checkpoints, and it is lost or cut; ConfigError.
        """
        if not checkpoints.list_checkpoints(self.checkpoints):
            return None
        checkpoints.check_config_file(self.config_file)
        config = load_config(str(self.config_file))
        self._run_name = config.run.name
        return config

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
            self.run_id = read_run_id(self.path) or new_run_id()
            write_whole(self.path / RUN_ID_FILE, run_id_text(self.run_id))
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

    def newest_whole(self, most_updates: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest checkpoint that can be continued, and a line per one passed over.

        Args:
          most_updates: later ones do not count, sound as they may be.
        Raises: CheckpointError if it cannot be told which checkpoints are this run's.
        """
        found = self._list()
        if self._seen is None:
            self._seen = found
        warnings = [
            f"{stray}, where a checkpoint has a folder; it is passed over."
            for stray in checkpoints.list_strays(self.checkpoints)
        ]
        run_id = self.run_id or read_run_id(self.path)
        for checkpoint in reversed(found):
            fault = self._find_fault(checkpoint, run_id)
            if fault is None:
                if most_updates is None or read_progress(checkpoint.path).updates <= most_updates:
                    return checkpoint, warnings
                continue
            warnings.append(f"Checkpoint {checkpoint.path.name} {fault}; using an earlier one.")
        return None, warnings

    def _find_fault(self, checkpoint: Checkpoint, run_id: str | None) -> str | None:
        """Say why a checkpoint is not one that this run can go on from; None if it is."""
        damage = checkpoints.find_damage(checkpoint.path)
        if damage is not None:
            return f"is damaged ({damage})"
        own = checkpoints.checkpoint_name(self._run_name or "", checkpoint.epoch, checkpoint.step)
        if self._run_name is not None and checkpoint.path.name != own:
            return f"is passed over (it is of another run, not of {self._run_name})"
        stranger = find_stranger(checkpoint.path, run_id)
        if stranger is not None:
            return f"is passed over ({stranger})"
        try:
            read_progress(checkpoint.path)
        except CheckpointError as error:
            return f"is damaged ({error})"
        return None

    @naming
    def write_held_out(self, names: Iterable[str]) -> Path:
        """List the images that were taken out of training. Returns: the file."""
        write_whole(self.held_out_file, listed(names))
        return self.held_out_file

    @naming
    def forget_passed_over(self) -> None:
        """Remove what a run before this one, which begins anew, has passed over."""
        (self.path / PASSED_OVER_FILE).unlink(missing_ok=True)

    @naming
    def cut_metrics_back(self, updates: int) -> list[str]:
        """Drop the rows after an update, so that a resumed run writes each step once.

        Returns: a line for the log, if rows of before were lost.
        """
        return cut_rows_back(self.metrics_file, updates)

    def read_last_evaluation(self, updates: int) -> dict[str, float] | None:
        """Return the evaluation after an update, as `metrics.jsonl` tells it; None if it does not.

        Raises: CheckpointError if that is no file.
        """
        return find_evaluation(self.metrics_file, updates)
