"""Checkpoints that are damaged, or of something else: named, and nothing half-written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_weights import write_mindspore

import vitbase
from vitbase.errors import CheckpointError, ConfigError, DataError, VitbaseError, WeightsError
from vitbase.weights.files.open import open_tensors


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    model = vitbase.create_model("testing", num_classes=5, image_size=32)
    vitbase.save_weights(model, tmp_path / "weights.ckpt", dialect="mindspore")
    return tmp_path / "weights.ckpt"


def with_nan(path: Path) -> None:
    tensors = {name: stored.read() for name, stored in open_tensors(path).tensors.items()}
    tensors["head.weight"][0, 0] = torch.nan
    write_mindspore(path, tensors)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_another_width(path: Path) -> None:
    path.unlink()
    model = vitbase.create_model("ViT-Ti_16", depth=1, num_classes=5, image_size=32)
    vitbase.save_weights(model, path, dialect="mindspore")


def hybrid(path: Path) -> None:
    path.unlink()
    torch.manual_seed(0)
    model = vitbase.create_model(
        "R50+ViT-B_16", resnet_layers=(1, 1, 1), depth=1, num_classes=5, image_size=32
    )
    vitbase.save_weights(model, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").rename(path)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (with_nan, WeightsError, r"head\.weight.*not finite"),
        (cut_short, WeightsError, "cut short"),
        (of_another_width, WeightsError, "of another architecture than the run's model"),
        (hybrid, VitbaseError, "another architecture|stem resnet"),
    ],
)
def test_weights_that_do_not_do_are_named_before_anything_is_written(
    small, ckpt, damage, error, message
):
    damage(ckpt)
    config = small("mindspore", checkpoint_path=str(ckpt), pre_trained=True)
    with pytest.raises(error, match=message):
        vitbase.train(config)
    assert not config.output_dir.exists()
    if damage not in (hybrid, of_another_width):
        with pytest.raises(error, match=message):
            vitbase.evaluate(small("mindspore", checkpoint_path=str(ckpt)))


def test_a_hybrid_is_not_evaluated_and_told_which_engine_does(small, ckpt):
    hybrid(ckpt)
    with pytest.raises(ConfigError, match=r"has stem resnet.*--engine torch"):
        vitbase.evaluate(small("mindspore", checkpoint_path=str(ckpt)))


def test_a_damaged_checkpoint_of_the_run_is_passed_over(small, capsys):
    config = small("mindspore", checkpoint_every_steps=4, epoch_size=1, warmup_epochs=0)
    vitbase.train(config)
    last = config.output_dir / "checkpoints" / "train_vit_imagenet-1_10"
    file = last / "train_vit_imagenet-1_10.ckpt"
    file.write_bytes(file.read_bytes()[:-1])
    vitbase.train(config)
    told = capsys.readouterr().out
    assert "train_vit_imagenet-1_10 is damaged" in told
    assert "train_vit_imagenet-1_8, update 8" in told


def test_a_checkpoint_without_its_momentum_is_refused(small, tmp_path):
    config = small("mindspore", checkpoint_every_steps=4, epoch_size=1, warmup_epochs=0)
    vitbase.train(config)
    from vitbase.runs.checkpoints import write_manifest

    last = config.output_dir / "checkpoints" / "train_vit_imagenet-1_10"
    file = last / "train_vit_imagenet-1_10.ckpt"
    kept = {n: s.read() for n, s in open_tensors(file).tensors.items() if "moments" not in n}
    write_mindspore(file, kept)
    progress = last / "progress.json"
    progress.write_text(progress.read_text().replace('"finished": true', '"finished": false'))
    write_manifest(last)
    with pytest.raises((CheckpointError, DataError), match=r"tensor 'moments\..*is missing"):
        vitbase.train(config.replace(epoch_size=1))


def test_weights_that_became_no_numbers_are_not_stored(small, monkeypatch):
    from vitbase.mindspore.learner import MindSporeLearner

    step = MindSporeLearner.step

    def spoiled(self: Any, update: int, *args: Any, **more: Any) -> Any:
        taken = step(self, update, *args, **more)
        if update == 9:
            import mindspore as ms

            head = next(p for p in self.network.get_parameters() if p.name == "head.bias")
            head.set_data(ms.Tensor(np.full(head.shape, np.nan, np.float32)))
        return taken

    monkeypatch.setattr(MindSporeLearner, "step", spoiled)
    config = small("mindspore")
    with pytest.raises(VitbaseError, match=r"no numbers after update 10 \(head\.bias\)"):
        vitbase.train(config)
    assert not list(config.output_dir.rglob("*.ckpt"))
