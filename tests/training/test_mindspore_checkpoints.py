"""`.ckpt` files as the seed writes them, beside the checkpoints that a run resumes from."""

from __future__ import annotations

import pytest
import torch

import vitbase
from vitbase.errors import WeightsError
from vitbase.runs.checkpoints import list_checkpoints

SEED = {"checkpoint_format": "mindspore", "pool": "token", "name": "imagenet", "epoch_size": 3}


def test_they_have_the_seeds_names_and_hold_the_same_weights(tiny_config):
    config = tiny_config(**SEED, keep_checkpoint_max=2)
    vitbase.train(config)
    names = sorted(path.name for path in config.output_dir.glob("*.ckpt"))
    assert names == ["train_vit_imagenet-2_6.ckpt", "train_vit_imagenet-3_6.ckpt"]
    theirs = vitbase.load_model(config.output_dir / names[-1], num_heads=2)
    assert theirs.report.dialect == "mindspore"
    ours = vitbase.load_model(list_checkpoints(config.output_dir / "checkpoints")[-1].path)
    for name, value in ours.model.state_dict().items():
        assert torch.equal(theirs.model.state_dict()[name], value), name


def test_a_run_that_writes_them_resumes_exactly(tiny_config, tmp_path):
    whole = tiny_config(**SEED, output_dir=str(tmp_path / "whole"))
    vitbase.train(whole)
    again = tiny_config(**SEED, output_dir=str(tmp_path / "again"))
    vitbase.train(again.replace(total_steps=None))
    last = list_checkpoints(again.output_dir / "checkpoints")[-1]
    for path in last.path.iterdir():
        path.unlink()
    last.path.rmdir()
    vitbase.train(again)
    name = "train_vit_imagenet-3_6.ckpt"
    assert (whole.output_dir / name).read_bytes() == (again.output_dir / name).read_bytes()


def test_what_mindspore_has_no_name_for_is_refused_before_the_first_update(tiny_config):
    config = tiny_config(checkpoint_format="mindspore")  # pool gap
    with pytest.raises(WeightsError, match="mindspore cannot express"):
        vitbase.train(config)
    assert not config.output_dir.exists()
