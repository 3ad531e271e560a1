"""The network, its loss and its updates: MindSpore's own numbers, and those of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch

import vitbase
from vitbase.config.batch import BatchLayout
from vitbase.config.config import load_config
from vitbase.data.loader import Batch
from vitbase.data.mix import Mix
from vitbase.data.normalize import normalize
from vitbase.mindspore.devices import joined_runtime
from vitbase.mindspore.learner import LossScale, MindSporeLearner, Twin
from vitbase.mindspore.model import Network
from vitbase.mindspore.update import Normalize
from vitbase.model.zoo import build_model, variant_spec
from vitbase.runtime import local_runtime
from vitbase.training.objective import Objective
from vitbase.training.optim import build_optimizer, set_learning_rate
from vitbase.training.schedule import Schedule

FIXTURE = Path(__file__).parents[1] / "reference" / "mindspore_tiny"
META = json.loads((FIXTURE / "meta.json").read_text(encoding="utf-8"))
TOLERANCE = 1e-6
PREPROCESS = vitbase.load_config("imagenet", image_size=32).data.preprocess


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FIXTURE / "expected.npz") as file:
        return dict(file)


def learner_of(model: Any, images: int, precision: str = "fp32", **options: Any) -> Any:
    """Build a learner over whole batches of some images, at a rate that stays."""
    config = load_config("imagenet", image_size=32, num_classes=10, **options)
    with joined_runtime("CPU", precision=precision) as runtime:
        twin = Twin.of(model, runtime, config.data.preprocess)
    labels = np.zeros(1, np.int64)
    objective = Objective(config, labels, 10, torch.device("cpu"))
    schedule = Schedule(config.optimizer.lr_init, "constant", 0, 100)
    layout = BatchLayout(images, 1, 1, images)
    return MindSporeLearner(twin, config, runtime, layout, schedule, objective)


def batch_of(expected: dict[str, np.ndarray]) -> Batch:
    """Make a batch of images that are normalised already."""
    images = torch.from_numpy(expected["images"]).permute(0, 2, 3, 1).contiguous()
    labels = torch.from_numpy(expected["labels"]).long()
    places = torch.arange(len(labels))
    return Batch(images, labels, places, torch.ones(len(labels), dtype=torch.bool), 0)


def logits_of(learner: Any, expected: dict[str, np.ndarray]) -> np.ndarray:
    return learner.model(torch.from_numpy(expected["images"])).numpy()


def test_logits_losses_and_moments_are_those_of_mindspores_vit_base(expected):
    """The seed's fixture: five updates that the public vit_base took."""
    model = vitbase.load_model(FIXTURE / "weights.ckpt", num_heads=META["heads"]).model
    batch = batch_of(expected)
    learner = learner_of(
        model,
        len(batch.labels),
        lr_init=META["lr"],
        momentum=META["momentum"],
        weight_decay=META["weight_decay"],
    )
    assert np.abs(logits_of(learner, expected) - expected["logits"]).max() < TOLERANCE
    losses = []
    for update in range(META["steps"]):
        taken = learner.step(update, iter([batch]), Mix())
        losses.append(float(taken.loss_sum) / len(batch.labels))
    assert np.abs(np.array(losses) - expected["losses"]).max() < TOLERANCE
    assert np.abs(logits_of(learner, expected) - expected["logits_after"]).max() < TOLERANCE
    after = {name: value.asnumpy() for name, value in stored("train.ckpt").items()}
    ours = {parameter.name: parameter.asnumpy() for parameter in learner.parameters()}
    assert set(after) == set(ours)  # learning_rate, momentum and global_step, too
    after.pop("learning_rate")  # of a list of rates, whose current one ours holds
    for name, value in after.items():
        assert value.shape == ours[name].shape
        assert np.abs(value - ours[name]).max() < TOLERANCE, name


def stored(file: str) -> Any:
    return ms.load_checkpoint(str(FIXTURE / file))


def test_names_and_shapes_are_those_of_vit_base():
    spec = vitbase.load_model(FIXTURE / "weights.ckpt", num_heads=META["heads"]).spec
    network = Network(spec)
    theirs = stored("weights.ckpt")
    ours = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    assert ours == {name: tuple(value.shape) for name, value in theirs.items()}
    assert ms.load_param_into_net(network, theirs) == ([], [])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gelu": "erf"},
        {"pool": "gap", "class_token": False},
        {"pool": "gap"},
        {"representation_size": 12},
        {"image_size": (48, 16)},
        {"in_channels": 1},
    ],
    ids=str,
)
def test_outputs_and_updates_are_those_of_torch(changes):
    torch.manual_seed(0)
    size = changes.pop("image_size", (32, 32))
    spec = variant_spec("testing", num_classes=10, image_size=size, head_init_std=0.3, **changes)
    images_BCHW = torch.randn(4, spec.in_channels, *size)
    labels = torch.tensor([1, 7, 3, 3])
    expected = {"images": images_BCHW.numpy(), "labels": labels.numpy()}
    model = build_model(spec)
    rate, decay = 0.002, 1e-2
    learner = learner_of(model, 4, lr_init=rate, weight_decay=decay)
    assert np.abs(logits_of(learner, expected) - model(images_BCHW).detach().numpy()).max() < 1e-5
    config = load_config("imagenet", lr_init=rate, weight_decay=decay)
    optimizer = build_optimizer(model, config.optimizer, local_runtime("CPU"))
    for update in range(3):
        loss = torch.nn.functional.cross_entropy(model(images_BCHW), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        taken = learner.step(update, iter([batch_of(expected)]), Mix())
        assert float(taken.loss_sum) / 4 == pytest.approx(loss.item(), abs=5e-6)
    assert np.abs(logits_of(learner, expected) - model(images_BCHW).detach().numpy()).max() < 3e-5


def test_five_updates_of_adamw_are_those_of_torch():
    torch.manual_seed(0)
    spec = variant_spec("testing", num_classes=10, image_size=32, head_init_std=0.3)
    model = build_model(spec)
    options: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.1, "betas": (0.9, 0.99)}
    learner = learner_of(model, 4, lr_init=0.01, **options)
    config = load_config("imagenet", lr_init=0.01, **options)
    optimizer = build_optimizer(model, config.optimizer, local_runtime("CPU"))
    generator = torch.Generator().manual_seed(1)
    for update in range(5):
        images = torch.randn(4, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (4,), generator=generator)
        set_learning_rate(optimizer, 0.01)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        batch = batch_of({"images": images.numpy(), "labels": labels.numpy()})
        taken = learner.step(update, iter([batch]), Mix())
        assert float(taken.loss_sum) / 4 == pytest.approx(loss.item(), abs=5e-6), update
    twin = dict(model.named_parameters())
    head = next(p for p in learner.network.get_parameters() if p.name == "head.weight")
    assert np.abs(head.asnumpy() - twin["head.weight"].detach().numpy()).max() < 1e-5


def test_pixels_are_normalised_as_torch_does():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours = Normalize(PREPROCESS)(ms.Tensor(pixels)).asnumpy()
    theirs = normalize(torch.from_numpy(pixels), PREPROCESS).permute(0, 2, 3, 1).numpy()
    assert np.abs(ours - theirs).max() < 1e-6


def test_images_that_could_not_be_read_are_left_out_of_the_loss(expected):
    model = vitbase.load_model(FIXTURE / "weights.ckpt", num_heads=META["heads"]).model
    whole = batch_of(expected)
    half = {key: value[:2] for key, value in expected.items()}
    labels = whole.labels.clone()
    labels[2:] = -100
    with_bad = Batch(whole.images, labels, whole.positions, labels >= 0, 0)
    first, second = learner_of(model, 4), learner_of(model, 4)
    one = first.step(0, iter([with_bad]), Mix())
    other = second.step(0, iter([batch_of(half)]), Mix())
    assert float(one.loss_sum) == pytest.approx(float(other.loss_sum), abs=1e-6)
    after = [logits_of(learner, expected) for learner in (first, second)]
    assert np.abs(after[0] - after[1]).max() < 1e-6


def test_half_precision_computes_nearly_the_same(expected):
    model = vitbase.load_model(FIXTURE / "weights.ckpt", num_heads=META["heads"]).model
    learner = learner_of(model, 4, "fp16", lr_init=META["lr"])
    difference = np.abs(logits_of(learner, expected) - expected["logits"]).max()
    assert 1e-6 < difference < 1e-2
    losses = []
    for update in range(META["steps"]):
        taken = learner.step(update, iter([batch_of(expected)]), Mix())
        losses.append(float(taken.loss_sum) / 4)
    assert np.abs(np.array(losses) - expected["losses"]).max() < 1e-2
    assert learner.scaling.value == 2.0**16
    weights = [parameter.dtype for parameter in learner.network.get_parameters()]
    assert set(weights) == {ms.float32}


def test_a_loss_scale_gives_way_and_grows():
    scaling = LossScale(True)
    assert not scaling.update(finite=False)
    assert scaling.value == 2.0**15
    assert all(scaling.update(finite=True) for _ in range(2000))
    assert scaling.value == 2.0**16
    again = LossScale(True)
    again.load_state_dict({"scale": 8.0, "_growth_tracker": 3})
    assert again.state_dict() == {"scale": 8.0, "_growth_tracker": 3}
    assert LossScale(False).state_dict() == {}
