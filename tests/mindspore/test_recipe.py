"""The recipe `imagenet` on both engines: same images, same losses, same weights, same counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from conftest import SMALL, losses, rows
from mindspore import nn

import vitbase
from vitbase.mindspore.model import Network
from vitbase.runs.checkpoints import list_checkpoints

TOLERANCE = 1e-5
LAST = "train_vit_imagenet-2_10"


def of_engines(small: Any, **options: Any) -> tuple[Path, Path]:
    """Train the same run on both engines. Returns: their folders, torch's first."""
    folders = []
    for engine in ("torch", "mindspore"):
        config = small(engine, **options)
        vitbase.train(config)
        folders.append(config.output_dir)
    return folders[0], folders[1]


def assert_same(theirs: Path, ours: Path, updates: int = 20) -> None:
    """Check that losses, evaluations, rates and final weights of two runs agree."""
    assert len(losses(ours)) == updates
    assert losses(ours) == pytest.approx(losses(theirs), abs=TOLERANCE)
    for key in ("lr", "epoch", "eval_top1", "eval_images", "eval_unreadable"):
        assert [row[key] for row in rows(ours, key)] == [row[key] for row in rows(theirs, key)]
    found = [[row["eval_loss"] for row in rows(run, "eval_loss")] for run in (theirs, ours)]
    assert found[1] == pytest.approx(found[0], abs=TOLERANCE)
    states = [vitbase.load_model(run).model.state_dict() for run in (theirs, ours)]
    largest = max(float(value.abs().max()) for value in states[0].values())
    for name, value in states[0].items():
        difference = (value - states[1][name]).abs()
        if name.endswith("qkv.bias"):
            # Softmax ignores what a key's bias adds: its gradient is rounding alone, of which AdamW
            # makes whole steps.
            difference = torch.cat(difference.chunk(3)[::2])
        assert float(difference.max()) <= TOLERANCE * largest, name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, imagenet: dict[str, str]) -> Any:
    """Twenty updates of each engine."""
    root = tmp_path_factory.mktemp("trained")

    def small(engine: str, **options: Any) -> Any:
        given = {**SMALL, **imagenet, "engine": engine, "output_dir": str(root / engine)}
        return vitbase.load_config("imagenet", **{**given, **options})

    return of_engines(small, checkpoint_every_steps=4)


def test_twenty_updates_are_those_of_torch(trained):
    assert_same(*trained)


def test_a_run_leaves_what_mindspore_opens(trained):
    _, ours = trained
    names = [path.name for path in sorted(ours.glob("*.ckpt"))]
    assert f"{LAST}.ckpt" in names
    assert len(names) == 6  # after 4 and 8 of each epoch, and its end
    opened = ms.load_checkpoint(str(ours / f"{LAST}.ckpt"))
    loaded = vitbase.load_model(ours)
    network = Network(loaded.spec)
    beside: dict[str, Any] = {k: v for k, v in opened.items() if not isinstance(v, str)}
    absent, left = ms.load_param_into_net(network, beside)
    assert absent == []
    assert {name.split(".")[0] for name in left} == {
        "moments",
        "learning_rate",
        "momentum",
        "global_step",
    }
    assert opened["global_step"].asnumpy().tolist() == [20]
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    assert ms.load_param_into_net(optimizer, beside)[0] == []
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = network(ms.Tensor(images.permute(0, 2, 3, 1).contiguous().numpy())).asnumpy()
    loaded.model.eval()
    assert np.abs(logits - loaded.model(images).detach().numpy()).max() < 1e-5


def test_torch_opens_what_it_leaves(trained, tmp_path, small):
    _, ours = trained
    assert vitbase.load_model(ours).labels == tuple(f"n{i:08}" for i in range(5))
    counts = {}
    for engine in ("torch", "mindspore"):
        config = small(engine, checkpoint_path=str(ours), eval_batch_size=8)
        counts[engine] = [result.sums for result in vitbase.evaluate(config)]
    assert len(counts["torch"]) == len(list_checkpoints(ours / "checkpoints")) == 6
    for theirs, mine in zip(counts["torch"], counts["mindspore"], strict=True):
        assert (
            (mine.images, mine.top1_hits)
            == (theirs.images, theirs.top1_hits)
            == (23, mine.top1_hits)
        )
        assert mine.loss_sum == pytest.approx(theirs.loss_sum, abs=1e-4)
    done = vitbase.convert_weights(ours, tmp_path / "again.ckpt", dialect="mindspore")
    assert done.difference == 0


@pytest.mark.parametrize("engine", ["torch", "mindspore"])
def test_either_engine_continues_a_training_from_its_file(trained, small, tmp_path, engine):
    """As `continue_training` does from what MindSpore's own programs leave."""
    _, ours = trained
    config = small(
        engine,
        checkpoint_path=str(ours / "train_vit_imagenet-1_8.ckpt"),
        pre_trained=True,
        continue_training=True,
        output_dir=str(tmp_path / "continued"),
    )
    vitbase.train(config)
    assert losses(config.output_dir) == pytest.approx(losses(ours)[8:], abs=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"global_batch": 16},
        {"clip_norm": 1.0, "decay_on": "kernels", "weight_decay": 0.1},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "lr_init": 1e-3, "clip_norm": 1.0},
        {"sampling": "balanced", "repeated_augmentation": 2, "policy": "randaugment_timm"},
        {"pool": "gap", "representation_size": 12, "gelu": "erf"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_options_mean_what_they_mean_to_torch(small, options):
    assert_same(*of_engines(small, **options), 10 if "global_batch" in options else 20)


def test_a_run_starts_from_weights_of_another_origin(small, tmp_path):
    torch.manual_seed(0)
    model = vitbase.create_model("testing", num_classes=5, image_size=32, gelu="erf")
    vitbase.save_weights(model, tmp_path / "timm.safetensors", dialect="timm")
    weights = {"checkpoint_path": str(tmp_path / "timm.safetensors"), "pre_trained": True}
    assert_same(*of_engines(small, model=None, **weights, num_heads=2))


def test_half_precision_trains(small):
    theirs, ours = of_engines(small, precision="fp16", epoch_size=1, warmup_epochs=0)
    assert losses(ours) == pytest.approx(losses(theirs), abs=2e-2)
