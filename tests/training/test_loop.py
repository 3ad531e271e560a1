"""The loop: what a run leaves behind, and that resuming it changes nothing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from made_runs import rows_of
from safetensors.torch import load_file

import vitbase
from vitbase.errors import CheckpointError, ConfigError, DataError, WeightsError
from vitbase.training.guard import DivergedError
from vitbase.training.step import Learner


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("train_vit_*"))[-1]
    return load_file(newest / "weights.safetensors")


def assert_same_weights(left: Path, right: Path) -> None:
    ours, theirs = final_weights(left), final_weights(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


class InterruptedRunError(Exception):
    """Stands for whatever ends a process between two updates."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    step = Learner.step

    def counted(self, update, *arguments, **named):
        if update == updates:
            raise InterruptedRunError
        return step(self, update, *arguments, **named)

    monkeypatch.setattr(Learner, "step", counted)


def test_a_run_leaves_what_the_design_says(tiny_config):
    config = tiny_config()
    result = vitbase.train(config)
    folder = config.output_dir
    assert result.updates == 12
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.json",
        "train_vit_fashion-1_6",
        "train_vit_fashion-2_6",
    ]
    rows = rows_of(folder)
    training = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_top1" in row]
    assert [row["step"] for row in training] == [1, 2, 4, 6, 8, 10, 12]
    assert [row["step"] for row in evaluations] == [6, 12]
    assert {row["eval_images"] for row in evaluations} == {20}
    assert evaluations[-1]["eval_top1"] == result.eval_top1
    assert 0 <= result.eval_top1 <= result.eval_top5 <= 1
    best = json.loads((folder / "checkpoints" / "best.json").read_text())
    tops = [row["eval_top1"] for row in evaluations]
    assert best["eval_top1"] == max(tops)
    assert best["checkpoint"] == f"train_vit_fashion-{tops.index(max(tops)) + 1}_6"


def test_the_saved_configuration_alone_repeats_the_run(tiny_config, tmp_path):
    vitbase.train(tiny_config())
    again = vitbase.load_config(
        str(tmp_path / "run" / "config.toml"), output_dir=str(tmp_path / "again")
    )
    vitbase.train(again)
    assert_same_weights(tmp_path / "run", tmp_path / "again")


def test_it_learns(tiny_config):
    config = tiny_config(epoch_size=30, lr_init=0.01, keep_checkpoint_max=1)
    vitbase.train(config)
    losses = [row["loss"] for row in rows_of(config.output_dir) if "loss" in row]
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("stop_after", [3, 6, 8])
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tiny_config, tmp_path, monkeypatch, optimizer, stop_after
):
    options = {
        "optimizer": optimizer,
        "checkpoint_every_steps": 2,
        "dropout": 0.1,
        "stochastic_depth": 0.1,
        "train_crop": "pad",
        "clip_norm": 1.0,
    }
    whole = tiny_config(**options, output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    stopped = tiny_config(**options, output_dir=str(tmp_path / "stopped"))
    with monkeypatch.context() as patch:
        interrupt_after(patch, stop_after)
        with pytest.raises(InterruptedRunError):
            vitbase.train(stopped)
    vitbase.train(stopped)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    volatile = {"images_per_second", "data_wait_fraction", "checkpoint_fraction", "eval_seconds"}
    facts = [
        {
            (row["step"], key): value
            for row in rows_of(folder)
            for key, value in row.items()
            if key not in volatile and not key.startswith("loss")
        }
        for folder in (tmp_path / "whole", tmp_path / "stopped")
    ]
    assert facts[1].items() >= facts[0].items()
    steps = [row["step"] for row in rows_of(tmp_path / "stopped") if "loss" in row]
    assert steps == sorted(set(steps))


def test_accumulation_is_one_large_batch(tiny_config, tmp_path):
    losses = []
    for name, batch, steps in (("large", 20, 1), ("small", 5, 4)):
        config = tiny_config(
            output_dir=str(tmp_path / name),
            batch_size=batch,
            accumulation_steps=steps,
            optimizer="momentum",
            stochastic_depth=0.2,
            log_every_steps=1,
        )
        vitbase.train(config)
        losses.append([row["loss"] for row in rows_of(tmp_path / name) if "loss" in row])
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_workers_change_nothing(tiny_config, tmp_path):
    for workers in (1, 3):
        vitbase.train(tiny_config(output_dir=str(tmp_path / str(workers)), num_workers=workers))
    assert_same_weights(tmp_path / "1", tmp_path / "3")


def test_a_finished_run_says_so_and_gives_its_result(tiny_config, capsys):
    first = vitbase.train(tiny_config())
    capsys.readouterr()
    before = rows_of(first.output_dir)
    assert vitbase.train(tiny_config(num_workers=1)) == first
    assert "finished; nothing to do" in capsys.readouterr().out
    assert rows_of(first.output_dir) == before


def test_a_finished_run_needs_no_data(tiny_config, tiny_idx, tmp_path):
    shutil.copytree(tiny_idx, tmp_path / "data")
    config = tiny_config(data_path=str(tmp_path / "data"), num_classes=None)
    first = vitbase.train(config)
    shutil.rmtree(tmp_path / "data")
    assert vitbase.train(config) == first


def test_a_run_is_not_continued_on_other_classes(photo_config, photo_folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(photo_folder, data)
    config = photo_config(data_path=str(data), epoch_size=2, checkpoint_every_steps=2)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(InterruptedRunError):
            vitbase.train(config)
    (data / "bag").rename(data / "sack")
    with pytest.raises(DataError, match=r"bag, boot, coat.*boot, coat, sack"):
        vitbase.train(config)


def test_other_options_are_refused_on_resume(tiny_config):
    vitbase.train(tiny_config())
    with pytest.raises(ConfigError, match=r"lr_init: the run has 0.\d+, asked for 0.5"):
        vitbase.train(tiny_config(lr_init=0.5))
    with pytest.raises(ConfigError, match="--resume True"):
        vitbase.train(tiny_config(resume=False))


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tiny_config, tmp_path, capsys, damage
):
    whole = tiny_config(output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    folder = tmp_path / "run"
    vitbase.train(tiny_config())
    weights = folder / "checkpoints" / "train_vit_fashion-2_6" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(data[:-1])
    elif damage == "flip":
        data[-5] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    else:
        weights.with_name("manifest.json").write_text('{"files": ')
    vitbase.train(tiny_config())
    assert "train_vit_fashion-2_6 is damaged" in capsys.readouterr().out
    assert_same_weights(tmp_path / "whole", folder)


def test_only_the_newest_and_the_best_checkpoints_are_kept(tiny_config):
    config = tiny_config(epoch_size=5, keep_checkpoint_max=2)
    result = vitbase.train(config)
    kept = {path.name for path in (config.output_dir / "checkpoints").glob("train_vit_*")}
    assert kept == {
        "train_vit_fashion-4_6",
        "train_vit_fashion-5_6",
        result.best_checkpoint,
    }


def test_a_diverging_run_stops_and_saves_nothing_of_it(tiny_config):
    config = tiny_config(optimizer="momentum", lr_init=1e30, schedule="constant")
    with pytest.raises(DivergedError, match="lower --lr_init"):
        vitbase.train(config)
    for path in (config.output_dir / "checkpoints").glob("train_vit_*"):
        assert all(
            torch.isfinite(t).all() for t in load_file(path / "weights.safetensors").values()
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_takes_steps_and_keeps_float32_weights(tiny_config, precision):
    config = tiny_config(precision=precision, epoch_size=1)
    result = vitbase.train(config)
    assert result.updates == 6
    assert {tensor.dtype for tensor in final_weights(config.output_dir).values()} == {torch.float32}
    losses = [row["loss"] for row in rows_of(config.output_dir) if "loss" in row]
    assert losses[-1] < losses[0]


def test_a_folder_of_photographs_is_enough(photo_config, photo_folder, tmp_path, capsys):
    config = photo_config()
    result = vitbase.train(config)
    held_out = (tmp_path / "run" / "held_out.txt").read_text().split()
    assert {name.split("/")[0] for name in held_out} == {"bag", "boot", "coat"}
    loaded = vitbase.load_model(result.output_dir)
    assert loaded.labels == ("bag", "boot", "coat")
    # And on from these weights, with another number of classes: a new head, and it is said.
    fewer = tmp_path / "fewer"
    for name in ("bag", "boot"):
        shutil.copytree(photo_folder / name, fewer / name)
    capsys.readouterr()
    again = config.replace(
        data_path=str(fewer),
        output_dir=str(tmp_path / "again"),
        checkpoint_path=str(tmp_path / "run"),
        model=None,
        pool=None,
    )
    vitbase.train(again)
    assert "head.weight, head.bias" in capsys.readouterr().out
    assert vitbase.load_model(tmp_path / "again").labels == ("bag", "boot")


def test_weights_of_another_architecture_are_refused(tiny_config, tmp_path):
    vitbase.train(tiny_config())
    with pytest.raises(WeightsError, match="width is 10 in the file, not 192"):
        vitbase.train(
            tiny_config(
                checkpoint_path=str(tmp_path / "run"),
                output_dir=str(tmp_path / "other"),
                model="ViT-Ti_16",
            )
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"data_path": "/nowhere/photos"}, DataError, "/nowhere/photos"),
        ({"num_classes": 3}, DataError, "more than num_classes 3"),
        ({"batch_size": 61}, DataError, "fewer than one global batch"),
        ({"image_height": 17}, ConfigError, "17x16"),
        ({"pre_trained": True}, ConfigError, "--checkpoint_path"),
        ({"checkpoint_path": "nowhere.ckpt"}, CheckpointError, "nowhere.ckpt"),
    ],
)
def test_mistakes_end_before_anything_is_written(tiny_config, options, error, message):
    config = tiny_config(**options)
    with pytest.raises(error) as raised:
        vitbase.train(config)
    assert message in str(raised.value)
    assert not config.output_dir.exists()


def test_preprocessing_follows_the_weights_unless_it_is_given(tiny_config, photo_folder, tmp_path):
    vitbase.train(tiny_config())
    options = {
        "data_path": str(photo_folder),
        "checkpoint_path": str(tmp_path / "run"),
        "batch_size": 4,
        "epoch_size": 1,
        "warmup_epochs": 0,
    }
    follows = vitbase.load_config("finetune", **options, output_dir=str(tmp_path / "follows"))
    vitbase.train(follows)
    trained = vitbase.load_model(tmp_path / "run")
    tuned = vitbase.load_model(tmp_path / "follows")
    assert tuned.preprocess == trained.preprocess
    assert tuned.preprocess.channels == 1
    # The same command continues (here: finds it finished), although the weights are gone.
    shutil.rmtree(tmp_path / "run")
    assert vitbase.train(follows).updates == 5
    shutil.copytree(tmp_path / "follows", tmp_path / "run")
    with pytest.raises(WeightsError, match="--image_channels 1"):
        vitbase.train(
            follows.replace(
                image_channels=3,
                mean=(0.5,) * 3,
                std=(0.5,) * 3,
                output_dir=str(tmp_path / "colour"),
            )
        )
