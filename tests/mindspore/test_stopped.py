"""A run that was stopped, or killed, continues as if it had not been."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import losses, rows, start

import vitbase
from vitbase.errors import ConfigError
from vitbase.pulse import HUNG
from vitbase.stopping import STOPPED


def stop_at(words: list[str], update: int, folder: Path, number: signal.Signals) -> int:
    """Start a run, and send it a signal when it has logged an update. Returns: its exit code."""
    with start(words) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "  step " in line and len(losses(folder)) >= update:
                process.send_signal(number)
                break
    return process.returncode


def test_killed_at_random_and_started_again(small, command_words, tmp_path):
    moments = sorted(random.sample(range(2, 19), 2))  # others each time; a failure shows them
    whole = small("mindspore", checkpoint_every_steps=3, output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    folder = tmp_path / "killed"
    words = command_words(output_dir=folder, checkpoint_every_steps=3)
    codes = [stop_at(words, moments[0], folder, signal.SIGKILL)]
    codes.append(stop_at(words, moments[1], folder, signal.SIGTERM))
    assert codes == [-signal.SIGKILL, STOPPED]
    assert not list(folder.rglob("*.ckpt.tmp"))
    vitbase.train(whole.replace(output_dir=str(folder)))
    assert losses(folder) == pytest.approx(losses(whole.output_dir), abs=1e-6)
    found = [
        [row["eval_loss"] for row in rows(run, "eval_loss")] for run in (whole.output_dir, folder)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert not list(folder.rglob(".writing-*"))


def test_adamw_continues_at_its_step(small, tmp_path):
    options: dict[str, Any] = {"optimizer": "adamw", "lr_init": 1e-3, "keep_checkpoint_max": 1}
    whole = small("mindspore", **options, output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    # The same schedule, but an end inside it: as if it had been stopped there.
    half = small(
        "mindspore", **options, output_dir=str(tmp_path / "half"), checkpoint_every_steps=7
    )
    with pytest.MonkeyPatch.context() as patch:
        from vitbase.mindspore.learner import MindSporeLearner

        step = MindSporeLearner.step

        def interrupted(self: Any, update: int, *args: Any, **more: Any) -> Any:
            if update == 15:
                raise KeyboardInterrupt
            return step(self, update, *args, **more)

        patch.setattr(MindSporeLearner, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            vitbase.train(half)
    vitbase.train(half)
    assert losses(half.output_dir) == pytest.approx(losses(whole.output_dir), abs=1e-6)
    assert [path.name for path in half.output_dir.glob("*.ckpt")] == [
        "train_vit_imagenet-2_10.ckpt"
    ]


def test_a_finished_run_says_so_and_the_other_engine_leaves_it_alone(small, capsys):
    config = small("mindspore", epoch_size=1, warmup_epochs=0)
    first = vitbase.train(config)
    assert vitbase.train(config).metrics == pytest.approx(first.metrics, abs=1e-6)
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="engine: the run has mindspore, asked for torch"):
        vitbase.train(config.replace(engine="torch"))


def test_a_step_that_stands_still_is_named_and_ended(command_words, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, time\n"
        "from vitbase.cli.main import main\n"
        "from vitbase.mindspore.learner import MindSporeLearner\n"
        "step = MindSporeLearner.step\n"
        "def never_comes(self, update, *args, **options):\n"
        "    time.sleep(600 if update == 4 else 0)\n"
        "    return step(self, update, *args, **options)\n"
        "MindSporeLearner.step = never_comes\n"
        "main(sys.argv[1:])\n"
    )
    words = command_words(output_dir=tmp_path / "run", hang_minutes=0.1)
    program, *rest = words[:1] + words[words.index("train") :]
    with start([program, str(script), *rest]) as process:
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == HUNG, said
    assert "The run stands still in update 5 of 20, which begins" in said
    assert "in never_comes" in said
