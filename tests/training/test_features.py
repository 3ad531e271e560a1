"""What a run can be asked for beyond the plain: each changes what it should, and nothing else."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import losses_of, rows_of
from safetensors.torch import load_file
from torch._inductor import config as inductor_config

import vitbase
from vitbase.config.learning import AugmentSection
from vitbase.config.preprocess import default_preprocess
from vitbase.data.augment import TrainTransform
from vitbase.data.loader import TrainLoader
from vitbase.errors import ConfigError, DataError
from vitbase.model.cost import count_flops
from vitbase.model.layers import draw_depth_scales
from vitbase.model.zoo import variant_spec
from vitbase.runtime import Runtime, local_runtime
from vitbase.sources.open import open_source
from vitbase.training.guard import DivergedError, Guard
from vitbase.training.schedule import Schedule

ALL_AT_ONCE: dict[str, Any] = {
    "ema_decay": 0.8,
    "ema_every_steps": 2,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "stochastic_depth": 0.3,
    "dropout": 0.1,
    "label_smoothing": 0.1,
    "clip_norm": 0.5,
    "policy": "3-augment",
    "color_jitter": 0.3,
    "erase_probability": 0.5,
    "repeated_augmentation": 3,
    "sampling": "balanced",
    "layer_decay": 0.7,
}


def newest(folder: Path, file: str = "weights.safetensors") -> dict[str, torch.Tensor]:
    checkpoints = sorted((folder / "checkpoints").glob("train_vit_*"))
    return load_file(checkpoints[-1] / file)


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon"])
def test_with_everything_on_a_continued_run_is_the_uninterrupted_one(
    tiny_config, tmp_path, optimizer
):
    options = {**ALL_AT_ONCE, "optimizer": optimizer, "checkpoint_every_steps": 2}
    whole = tiny_config(output_dir=str(tmp_path / "whole"), **options)
    vitbase.train(whole)
    part = whole.replace(output_dir=str(tmp_path / "part"))
    vitbase.train(part)
    for path in (tmp_path / "part" / "checkpoints").iterdir():
        if path.name != "train_vit_fashion-2_2":
            path.rename(tmp_path / path.name)
    vitbase.train(part)
    assert losses_of(tmp_path / "part") == losses_of(tmp_path / "whole")
    for file in ("weights.safetensors", "training_state.safetensors"):
        assert_equal(newest(tmp_path / "part", file), newest(tmp_path / "whole", file))


def test_a_checkpoint_holds_the_average_that_was_evaluated(tiny_config, tmp_path):
    plain = tiny_config(output_dir=str(tmp_path / "plain"))
    vitbase.train(plain)
    averaged = plain.replace(output_dir=str(tmp_path / "averaged"), ema_decay=0.5)
    result = vitbase.train(averaged)
    weights = newest(tmp_path / "averaged")
    state = newest(tmp_path / "averaged", "training_state.safetensors")
    learning = {k.split("/")[1]: v for k, v in state.items() if k.startswith("weights/")}
    assert losses_of(tmp_path / "averaged") == losses_of(tmp_path / "plain")
    assert_equal(learning, newest(tmp_path / "plain"))
    assert not torch.equal(weights["head.weight"], learning["head.weight"])
    (evaluated,) = vitbase.evaluate(
        averaged.replace(
            checkpoint_path=str(sorted((tmp_path / "averaged" / "checkpoints").glob("t*"))[-1])
        )
    )
    assert evaluated.sums.loss == pytest.approx(result.eval_loss)


def test_linear_probing_trains_the_head_alone(tiny_config, tmp_path):
    vitbase.train(tiny_config(output_dir=str(tmp_path / "first")))
    before = newest(tmp_path / "first")
    probing = tiny_config(
        output_dir=str(tmp_path / "probe"),
        checkpoint_path=str(tmp_path / "first"),
        model=None,
        pool=None,
        freeze_backbone=True,
    )
    vitbase.train(probing)
    after = newest(tmp_path / "probe")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    kept = newest(tmp_path / "probe", "training_state.safetensors")
    assert {name.split("/")[1] for name in kept} == changed


def test_computing_activations_again_changes_no_number(tiny_config, tmp_path, three_blocks):
    options: dict[str, Any] = {"stochastic_depth": 0.3, "dropout": 0.1}
    for name, again in (("kept", False), ("again", True)):
        vitbase.train(
            tiny_config(output_dir=str(tmp_path / name), activation_checkpointing=again, **options)
        )
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "kept")
    assert_equal(newest(tmp_path / "again"), newest(tmp_path / "kept"))


def test_tensors_of_the_weights_can_be_left_out(photo_config, capsys):
    weights = Path(__file__).parents[1] / "reference" / "google_npz_tiny_rep" / "weights.npz"
    options = {"checkpoint_path": str(weights), "model": None, "pool": None}
    config = photo_config(**options, ignore_weights=("pre_logits*",))
    vitbase.train(config)
    assert "pre_logits/kernel" in capsys.readouterr().out
    assert vitbase.load_model(config.output_dir).spec.representation_size is None


def test_stochastic_depth_may_be_the_same_in_every_block():
    generator = torch.Generator().manual_seed(0)
    scales_L2B = draw_depth_scales(0.25, 4, 4000, rule="uniform", generator=generator)
    kept_L = (scales_L2B > 0).float().mean(dim=(1, 2))
    assert kept_L.tolist() == pytest.approx([0.75] * 4, abs=0.02)
    assert scales_L2B.unique().tolist() == pytest.approx([0.0, 1 / 0.75])


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_change_no_loss(tiny_config, tmp_path, monkeypatch, backend):
    options: dict[str, Any] = {"stochastic_depth": 0.3, "total_steps": 4, "log_every_steps": 1}
    options |= {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "head_init_std": 0.02}
    # Without vectors and optimisation the C++ compiler is done in little more than half the time.
    plain = {"cpp.simdlen": 1, "aot_inductor.debug_compile": True, "compile_threads": 1}
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    for name, compiled in (("eager", False), ("compiled", True)):
        config = tiny_config(output_dir=str(tmp_path / name), compile=compiled, **options)
        with inductor_config.patch(plain):
            vitbase.train(config)
    assert losses_of(tmp_path / "compiled") == pytest.approx(
        losses_of(tmp_path / "eager"), abs=1e-5
    )


@pytest.mark.parametrize(
    "options", [{}, {"freeze_backbone": True, "frozen_views": 0}, {"pool": "token"}]
)
def test_utilisation_is_the_work_asked_for_of_what_the_device_could(
    tiny_config, monkeypatch, options
):
    monkeypatch.setattr(Runtime, "peak_flops", lambda self: 1e10)
    config = tiny_config(**options)
    vitbase.train(config)
    asked_for = vitbase.explain(config).training_flops  # the log and explain agree
    for row in rows_of(config.output_dir):
        if "loss" in row:
            used = row["images_per_second"] * asked_for / 1e10
            assert row["flops_utilisation"] == pytest.approx(used, abs=1e-3)


def test_flops_are_those_of_the_whole_model():
    base = count_flops(variant_spec("ViT-B_16"))
    # By hand: projection, twelve blocks, head. Others count 17.58, with the norms' own sums.
    tokens, width, mlp = 197, 768, 3072
    block = tokens * width * (4 * width + 2 * mlp) + 2 * tokens * tokens * width
    macs = 196 * 768 * width + 12 * block + 1000 * width
    assert base.forward == 2 * macs
    assert base.forward / 2e9 == pytest.approx(17.58, rel=2e-3)
    probe = count_flops(variant_spec("ViT-B_16"), head_only=True)
    assert probe.forward == base.forward
    assert 2.9 < base.training / probe.training < 3.0


def test_a_run_can_be_counted_in_updates(tiny_config):
    config = tiny_config(total_steps=8, warmup_steps=4, lr_init=0.004, log_every_steps=1)
    result = vitbase.train(config)
    rows = [row for row in rows_of(config.output_dir) if "loss" in row]
    assert result.updates == len(rows) == 8
    assert [row["lr"] for row in rows[:5]] == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.004])
    assert rows[-1]["lr"] > 0
    assert (config.output_dir / "checkpoints" / "train_vit_fashion-2_2").is_dir()
    assert vitbase.train(config) == result


def test_the_recipes_rule_gives_the_rate_and_the_run_keeps_it(tiny_config, tmp_path):
    table = {"lr_by_global_batch": ((10, 0.001), (40, 0.002)), "optimizer": "momentum"}
    config = tiny_config(**table, batch_size=20, log_every_steps=1, schedule="constant")
    vitbase.train(config)
    assert {row["lr"] for row in rows_of(config.output_dir) if "loss" in row} == {0.002}
    saved = vitbase.load_config(str(config.output_dir / "config.toml"))
    assert (saved.data.global_batch, saved.optimizer.lr_init) == (20, 0.002)
    assert saved.optimizer.lr_by_global_batch == ()
    vitbase.train(config)  # the same command: finished, not refused
    given = config.replace(lr_init=0.1, output_dir=str(tmp_path / "given"))
    vitbase.train(given)
    assert {row["lr"] for row in rows_of(given.output_dir) if "loss" in row} == {0.1}


def test_a_run_goes_on_in_smaller_forward_passes(tiny_config, capsys):
    config = tiny_config(batch_size=20, checkpoint_every_steps=1, keep_checkpoint_max=9)
    vitbase.train(config)
    (config.output_dir / "checkpoints" / "train_vit_fashion-2_3").rename(
        config.output_dir / "moved"
    )
    capsys.readouterr()
    vitbase.train(config.replace(batch_size=5))
    assert "of 20 images (batch_size 5 x accumulation 4)" in capsys.readouterr().out


def test_a_run_that_diverges_names_update_and_images(tiny_config):
    config = tiny_config(optimizer="momentum", lr_init=1e30)
    with pytest.raises(DivergedError, match=r"became NaN or infinite at update \d+\.") as raised:
        vitbase.train(config)
    assert "of its 10 images: train-images-idx3-ubyte.gz" in str(raised.value)
    assert "There is no checkpoint. Try a lower --lr_init" in str(raised.value)


def test_a_run_that_diverges_keeps_the_last_good_checkpoint(tiny_config, monkeypatch):
    config = tiny_config(optimizer="momentum", checkpoint_every_steps=2)
    rate = Schedule.at
    monkeypatch.setattr(Schedule, "at", lambda self, n: 1e38 if n == 9 else rate(self, n))
    with pytest.raises(DivergedError, match="The weights are no numbers after update 10") as raised:
        vitbase.train(config)
    kept = sorted((config.output_dir / "checkpoints").glob("train_vit_*"))
    assert [path.name[-3:] for path in kept] == ["1_4", "1_6", "2_2"]
    assert f"Checkpoint {kept[-1]} is from before" in str(raised.value)
    for name, weight in load_file(kept[-1] / "weights.safetensors").items():
        assert torch.isfinite(weight).all(), name


def test_the_guard_names_the_very_image(photo_folder):
    source = open_source(str(photo_folder), "train", "data_path")
    transform = TrainTransform(default_preprocess(32, 32, 3), AugmentSection())
    loader = TrainLoader(source, transform, seed=3, batch_size=4, num_workers=1)
    guard = Guard(local_runtime("CPU"), loader, lambda: "Advice.")
    batches = list(loader.epoch(0))
    for step, batch in enumerate(batches):
        logits = torch.zeros(4, 3)
        if step == 4:
            logits[2, 1] = math.inf
        guard.watch(step, batch.positions, torch.isfinite(logits).all(dim=1))
    place = loader.describe_position(0, int(batches[4].positions[2]))
    assert Path(place).is_file()
    with pytest.raises(DivergedError, match="at update 5") as raised:
        guard.look()
    assert f"for 1 of its 4 images: {place}. Advice." in str(raised.value)
    guard.look()  # nothing has been seen since


@pytest.fixture
def several_labels(photo_folder: Path, tmp_path: Path) -> Path:
    """A table in which an image has one or two labels."""
    table = tmp_path / "several.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "labels", "split"])
        for number, path in enumerate(sorted(photo_folder.rglob("*.*"))):
            second = "|large" if number % 2 else ""
            split = "val" if number % 4 == 3 else "train"
            writer.writerow([path, f"{path.parent.name}{second}", split])
    return table


def test_images_with_several_labels(photo_config, several_labels, tmp_path, capsys):
    options = {"data_path": str(several_labels), "loss": "sigmoid", "mixup_alpha": 0.2}
    config = photo_config(**options, class_weights="balanced", epoch_size=2)
    result = vitbase.train(config)
    assert result.metrics.keys() >= {"eval_map", "eval_f1_micro", "eval_loss"}
    assert result.best_score == max(
        row["eval_map"] for row in rows_of(config.output_dir) if "eval_map" in row
    )
    assert "mAP" in capsys.readouterr().out
    assert vitbase.train(config) == result
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--loss sigmoid"):
        vitbase.train(photo_config(data_path=str(several_labels), output_dir=nowhere))
    with pytest.raises(DataError, match="--class_weights balanced"):
        vitbase.train(config.replace(sampling="balanced", output_dir=nowhere))
    assert not Path(nowhere).exists()


def test_balanced_sampling_shows_every_class_equally_often(photo_folder, tmp_path):
    uneven = tmp_path / "uneven"
    for name, count in (("bag", 8), ("boot", 2), ("coat", 4)):
        (uneven / name).mkdir(parents=True)
        for path in sorted((photo_folder / name).iterdir())[:count]:
            (uneven / name / path.name).write_bytes(path.read_bytes())
    source = open_source(str(uneven), "train", "data_path")
    transform = TrainTransform(default_preprocess(32, 32, 3), AugmentSection())
    counts = np.zeros(3, int)
    for epoch in range(3):
        loader = TrainLoader(source, transform, seed=0, batch_size=7, balanced=True)
        for batch in loader.epoch(epoch):
            counts += np.bincount(batch.labels, minlength=3)
    assert counts.tolist() == [14, 14, 14]


def test_class_weights_make_rare_classes_count(tiny_config, tmp_path):
    for weights in ("none", "balanced"):
        vitbase.train(tiny_config(output_dir=str(tmp_path / weights), class_weights=weights))
    assert losses_of(tmp_path / "none") != losses_of(tmp_path / "balanced")


def test_tensorboard_shows_what_metrics_has(tiny_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config(tensorboard=True)
    vitbase.train(config)
    events = EventAccumulator(str(config.output_dir / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    wanted = [(row["step"], row["loss"]) for row in rows_of(config.output_dir) if "loss" in row]
    assert [step for step, _ in shown] == [step for step, _ in wanted]
    assert [value for _, value in shown] == pytest.approx([value for _, value in wanted])
    assert {"lr", "gradient_norm", "eval_top1"} <= set(events.Tags()["scalars"])


def test_several_devices_need_their_processes(tiny_config):
    with pytest.raises(ConfigError, match="vitbase train RECIPE --num_devices 2"):
        vitbase.train(tiny_config(num_devices=2))
