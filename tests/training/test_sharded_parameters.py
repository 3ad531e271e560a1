"""Two ranks with sharded parameters: the same updates and averages as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import vitbase
from vitbase.training.ema import ExponentialMovingAverage
from vitbase.training.lamb import Lamb
from vitbase.training.sharded import local_parts, whole_norms

STEPS = 4


def train(*, shard: bool) -> dict[str, Any]:
    """Take a few updates by made gradients; return whole tensors."""
    torch.manual_seed(0)
    # 5 classes: the head's rows cannot be cut evenly in two.
    model = vitbase.create_model("testing", num_classes=5, image_size=32)
    nn.init.normal_(model.head.weight, std=0.1)
    model.cls_token.requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    if shard:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    matrices = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = Lamb(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors}], lr=0.02, eps=1e-8
    )
    average = ExponentialMovingAverage(model, decay=0.7, every_steps=2)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        for parameter in (*matrices, *vectors):
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(
                    gradient, parameter.device_mesh, parameter.placements, src_data_rank=None
                )
            parameter.grad = gradient
        optimizer.step()
        average.update(step)
    model.eval()
    with torch.no_grad():
        before = model(images)
        with average.applied():
            averaged = model(images)
        after = model(images)
    restored = {name: whole(value).clone() for name, value in average.state_dict().items()}
    average.load_state_dict({name: torch.zeros_like(value) for name, value in restored.items()})
    average.load_state_dict(restored)
    return {
        "weights": {name: whole(p.detach()).clone() for name, p in model.named_parameters()},
        "averages": {name: whole(value) for name, value in average.state_dict().items()},
        "restored": restored,
        "logits": (before, averaged, after),
    }


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms_on(mesh_shape: tuple[int, int]) -> list[list[float]]:
    """Norms of [3, 4] ones, of [1, 9] twos (no rows for the last rank), and of a whole tensor.

    The mesh is that of hybrid sharding: copies along its first axis, shards along its second.
    """
    mesh = init_device_mesh("cpu", mesh_shape)
    values = (torch.ones(3, 4), torch.full((1, 9), 2.0))
    placements = (Replicate(), Shard(0))
    sharded = [distribute_tensor(value, mesh, placements, src_data_rank=None) for value in values]
    parameters = [*sharded, torch.full((4,), 5.0)]
    with torch.no_grad():
        mine = local_parts(parameters)
        return [norms.tolist() for norms in whole_norms(parameters, mine, [-2 * p for p in mine])]


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        norms = {"norms": [norms_on((1, 2)), norms_on((2, 1))]}
        torch.save({**train(shard=True), **norms}, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_lamb_and_the_average_of_a_sharded_model_are_those_of_the_whole(tmp_path: Path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    expected = train(shard=False)
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        for kind in ("weights", "averages"):
            assert got[kind].keys() == expected[kind].keys()
            for name, value in expected[kind].items():
                torch.testing.assert_close(got[kind][name], value, rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(got["logits"], expected["logits"], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        # Gathered weights must not outlive the swap, there or back.
        before, averaged, after = got["logits"]
        assert torch.equal(before, after)
        assert not torch.allclose(before, averaged, atol=1e-3)
        expected_norms = [12**0.5, 6.0, 10.0]
        for weights, doubled in got["norms"]:
            torch.testing.assert_close(weights, expected_norms)
            torch.testing.assert_close(doubled, [2 * norm for norm in expected_norms])
        for name, value in got["restored"].items():
            assert torch.equal(got["averages"][name], value)
