"""A run on disk: checkpoints that appear whole or not at all, and what a run resumes from.

The tensors of the training state are stored whole and by parameter name, in a safetensors file,
which cannot carry code: the number of ranks may change, and whether they shard the state.
Numbers (position, loss scale, best so far) are JSON in its metadata. The position is that of the
last update taken: data order and randomness are functions of it, so nothing else is kept.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from vitbase.config import Config, differences_on_resume, load_config
from vitbase.errors import CheckpointError, ConfigError
from vitbase.files import parse_json, remove_unfinished, write_whole, written_whole
from vitbase.weights import checkpoints
from vitbase.weights.checkpoints import Checkpoint
from vitbase.weights.dialects import to_ours
from vitbase.weights.formats import METADATA_KEY, write_safetensors
from vitbase.weights.load import OpenedWeights


@dataclasses.dataclass(frozen=True)
class Best:
    """The best checkpoint so far on the evaluation images; the earlier of two equals."""

    checkpoint: str
    score: float
    score_name: str = "eval_top1"


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: everything about its state that is not a tensor."""

    updates: int
    global_batch: int
    loss_scaler: dict[str, Any]
    best: Best | None
    finished: bool


class RunFolder:
    """The folder of one run: configuration, metrics, checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"

    def read_config(self) -> Config | None:
        """Return the configuration of the run that is here, or None."""
        return load_config(str(self.config_file)) if self.config_file.is_file() else None

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
                    f"{self.path} holds a run with other options:\n  "
                    + "\n  ".join(differences)
                    + "\nGive the same options to continue it, or another --output_dir."
                )

    def start(self, config: Config) -> None:
        """Create the folder, or clean up what an interruption left in it.

        Raises: CheckpointError if it cannot be written.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.checkpoints):
                remove_unfinished(folder)
            write_whole(self.config_file, config.to_toml())
        except OSError as error:
            raise CheckpointError(
                f"Cannot write the run folder {self.path}: {error.strerror}. "
                f"Choose another --output_dir."
            ) from None

    def newest_whole(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest undamaged checkpoint, and a line per damaged one passed over."""
        warnings: list[str] = []
        for checkpoint in reversed(checkpoints.list_checkpoints(self.checkpoints)):
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
        write_weights: Callable[[Path], None],
        tensors: Mapping[str, torch.Tensor],
        progress: Progress,
    ) -> Path:
        """Write a checkpoint beside, sync it, and rename it into place."""
        final = self.checkpoints / name
        with written_whole(final) as writing:
            writing.mkdir()
            write_weights(writing / checkpoints.WEIGHTS_FILE)
            write_safetensors(
                writing / checkpoints.STATE_FILE,
                tensors,
                {METADATA_KEY: json.dumps(dataclasses.asdict(progress), sort_keys=True)},
            )
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
    """Read the numbers of a checkpoint's training state."""
    with safe_open(checkpoint / checkpoints.STATE_FILE, framework="pt") as file:
        fields = parse_json((file.metadata() or {})[METADATA_KEY])
    best = fields.pop("best")
    return Progress(best=Best(**best) if best else None, **fields)


@dataclasses.dataclass(frozen=True)
class MindSporeState:
    """What MindSpore's Momentum keeps in a training checkpoint, by our names of parameters."""

    path: Path
    updates: int
    momentum: dict[str, torch.Tensor]


def read_mindspore_state(opened: OpenedWeights) -> MindSporeState:
    """Read momentum and position out of a training checkpoint of MindSpore's `vit_base`.

    Raises: CheckpointError if it holds none, or not for every weight.
    """
    path = opened.path
    stored = opened.file.tensors
    prefix = "moments."
    if opened.dialect.name != "mindspore" or "global_step" not in stored:
        raise CheckpointError(
            f"{path} is no training checkpoint of MindSpore: it has no tensor 'global_step'. To "
            f"start a new run from its weights, leave out --continue_training."
        )
    moments = {name.removeprefix(prefix): t for name, t in stored.items() if prefix in name}
    momentum = {}
    for name, weight in opened.ours.items():
        theirs = {part: moments[part] for part in weight.theirs if part in moments}
        shapes = [moment.shape for moment in theirs.values()]
        if shapes != [stored[part].shape for part in weight.theirs]:
            raise CheckpointError(
                f"{path}: tensor '{prefix}{weight.theirs[0]}', the momentum of a weight, is "
                f"missing or has another shape than it."
            )
        momentum[name] = to_ours(opened.dialect, theirs)[0][name].read()
        if not torch.isfinite(momentum[name]).all():
            raise CheckpointError(f"{path}: tensor '{prefix}{weight.theirs[0]}' is not finite.")
    step = stored["global_step"].read().flatten()
    if step.numel() != 1 or int(step[0]) < 0:
        raise CheckpointError(f"{path}: tensor 'global_step' should be one number of updates.")
    return MindSporeState(path, int(step[0]), momentum)
