"""The contenders: this package's own update and network, and timm's, on the same pixels.

A contender of ours is a set of options, as `vitbase train` takes them; a new option is a row more.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data.loader import PrefetchLoader
from torch import Tensor, nn
from torch.nn import functional as F

from vitbase.config.complete import Facts, complete
from vitbase.config.config import FIELDS, Config
from vitbase.data.loader import Batch
from vitbase.data.mix import Mix
from vitbase.evaluation.classifier import Network
from vitbase.model import VisionTransformer, build_model
from vitbase.runtime import Runtime
from vitbase.shipping.running.ways import WAYS
from vitbase.training.architecture import spec_of
from vitbase.training.objective import Objective
from vitbase.training.schedule import Schedule
from vitbase.training.step import Learner
from vitbase.weights.load import LoadedModel, LoadReport

PEERS = {
    "testing": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-L_16": "vit_large_patch16_224",
}
CLASSES = 1000
BATCHES = 4  # different ones, which come in turns: pixels that lie in pinned memory


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to train: options of ours, and which of timm's ways it is compared with."""

    name: str
    options: dict[str, Any]
    peer: str
    on_cpu: bool = True


TRAINING = tuple(
    contender
    for contender in (
        Contender("compiled", {"compile": True}, "timm compiled"),
        Contender("eager", {"compile": False}, "timm eager"),
        Contender("graph", {"compile": True, "device_graph": True}, "timm compiled", on_cpu=False),
        Contender("fp8", {"compile": True, "fp8": True}, "timm compiled", on_cpu=False),
    )
    if contender.options.keys() <= FIELDS.keys()  # those that there are
)
TIMM = {"timm compiled": True, "timm eager": False}
INFERENCE = (("compiled", "timm compiled"), ("eager", "timm eager"))
"""Ways of `vitbase bench`, without the precision at their end."""
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "momentum": {"optimizer": "momentum", "lr_init": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    "adamw": {"optimizer": "adamw", "lr_init": 1e-4, "weight_decay": 0.05, "decay_on": "kernels"},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """What both sides compute: a model, a batch, an optimizer.

    Attributes:
      model: by its name in the zoo.
      size: of the images, in pixels.
    """

    runtime: Runtime
    model: str
    batch: int
    size: int
    optimizer: str = "momentum"

    def config(self, options: dict[str, Any]) -> Config:
        """Return the complete configuration of a run. Raises: ConfigError."""
        asked: dict[str, Any] = {
            **{"model": self.model, "num_classes": CLASSES, "batch_size": self.batch},
            **{"image_height": self.size, "image_width": self.size, "pool": "token"},
            **{"precision": self.runtime.precision, "schedule": "constant", "warmup_epochs": 0},
            **OPTIMIZERS[self.optimizer],
            **options,
        }
        return complete(Config().replace(**asked), Facts(), 1).config

    def weights(self) -> VisionTransformer:
        """Build the model that every side starts from; with a head that is not zero, all learns."""
        torch.manual_seed(0)
        model = build_model(spec_of(self.config({})))
        assert model.head is not None
        nn.init.normal_(model.head.weight, std=0.02)
        return model

    def timm_model(self) -> nn.Module:
        """Build timm's model with the same weights: fused attention, as is its default."""
        own = self.weights()
        peer = timm.create_model(
            PEERS[self.model],
            num_classes=CLASSES,
            img_size=self.size,
            act_layer="gelu_tanh" if own.spec.gelu == "tanh" else "gelu",
            depth=own.spec.depth,
            embed_dim=own.spec.width,
            num_heads=own.spec.num_heads,
            mlp_ratio=own.spec.mlp_dim / own.spec.width,
            patch_size=own.spec.patch_size,
        )
        assert all(block.attn.fused_attn for block in peer.blocks)
        state = {key.replace("stem.", "patch_embed."): v for key, v in own.state_dict().items()}
        peer.load_state_dict(state)
        return peer

    def batches(self) -> Iterator[Batch]:
        """Yield batches as the loader hands them out, for ever."""
        made = []
        for number in range(BATCHES):
            generator = torch.Generator().manual_seed(number)
            shape = (self.batch, self.size, self.size, 3)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, CLASSES, (self.batch,), generator=generator)
            if self.runtime.pin_memory:
                images, labels = images.pin_memory(), labels.pin_memory()
            places = torch.arange(self.batch)
            made.append(Batch(images, labels, places, torch.ones(self.batch, dtype=torch.bool), 0))
        return itertools.cycle(made)


def build_learner(task: Task, options: dict[str, Any]) -> Learner:
    """Build what takes the updates of `vitbase train`, on the common weights."""
    config = task.config(options)
    completed = complete(config, Facts(), 1)
    objective = Objective(config, np.zeros(CLASSES, np.int64), CLASSES, task.runtime.device)
    schedule = Schedule.of(config.optimizer.lr_init, config.schedule, 1 << 20)
    model = task.weights().to(task.runtime.device).train()
    return Learner(model, config, task.runtime, completed.layout, schedule, objective)


class OurUpdates:
    """Updates as `vitbase train` takes them, its look at how the one before went included."""

    def __init__(self, task: Task, options: dict[str, Any]) -> None:
        self.learner = build_learner(task, options)
        self.runtime, self.batches = task.runtime, task.batches()
        self._updates = 0
        self._before: Callable[[], list[float]] | None = None

    def step(self) -> Tensor:
        taken = self.learner.step(self._updates, self.batches, Mix(), settle=self._settle)
        self._updates += 1
        assert taken.flags is not None
        self._before = self.runtime.start_read(taken.flags)
        return taken.loss_sum / self.learner.layout.global_batch

    def _settle(self) -> None:
        if self._before is not None:
            self._before()


class TimmUpdates:
    """Updates as timm's train.py takes them: its prefetcher, autocast, a fused optimizer."""

    def __init__(self, task: Task, *, compiled: bool) -> None:
        self.runtime = task.runtime
        own = task.timm_model().to(task.runtime.device).train()
        fused: dict[str, Any] = {"fused": task.runtime.fused_optimizer}
        if task.optimizer == "momentum":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                own.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, **fused
            )
        else:
            self.optimizer = torch.optim.AdamW(
                own.parameters(), lr=1e-4, weight_decay=0.05, **fused
            )
        self.model: Any = torch.compile(own) if compiled else own
        pairs = _AsTimm(task.batches())
        self.batches = iter(PrefetchLoader(pairs, device=task.runtime.device))

    def step(self) -> Tensor:
        images, labels = next(self.batches)
        with self.runtime.autocast():
            loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


class _AsTimm:
    """Batches as timm's loader hands them to its prefetcher: uint8 [B, C, H, W], and labels."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        ready: dict[int, Tensor] = {}
        for batch in self.batches:
            key = id(batch)
            if key not in ready:
                images = batch.images.permute(0, 3, 1, 2).contiguous()
                ready[key] = images.pin_memory() if batch.images.is_pinned() else images
            yield ready[key], batch.labels


class Passes:
    """Predictions of one host batch after another, as logits on the host."""

    def __init__(self, task: Task, network: Network) -> None:
        self.batches, self.network = task.batches(), network

    def step(self) -> Tensor:
        return self.network(next(self.batches).images)


def our_network(task: Task, way: str) -> Network:
    """Return what `vitbase bench` calls by the name of a way."""
    model = task.weights().eval()
    report = LoadReport(Path("random"), "native", (), (), (), ())
    preprocess = task.config({}).data.preprocess
    loaded = LoadedModel(Path("random"), model, model.spec, preprocess, None, report)
    name = way if task.runtime.precision == "fp32" else f"{way}_{task.runtime.precision}"
    return WAYS[name].network(loaded, task.runtime)


def timm_network(task: Task, *, compiled: bool) -> Network:
    """Return timm's network as its validate.py uses it: normalised on the device, autocast."""
    runtime = task.runtime
    own = task.timm_model().to(runtime.device).eval()
    model: Any = torch.compile(own) if compiled else own
    mean, std = (
        255 * torch.tensor(values, device=runtime.device).view(1, 3, 1, 1)
        for values in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )

    def network(pixels_BHWC: Tensor) -> Tensor:
        (pixels,) = runtime.send(pixels_BHWC)
        with torch.inference_mode(), runtime.autocast():
            logits_BC: Tensor = model(pixels.permute(0, 3, 1, 2).float().sub_(mean).div_(std))
        return logits_BC.float().cpu()

    return network


def training_builders(task: Task) -> dict[str, Callable[[], Any]]:
    """Return what builds each contender of a training task, by name."""
    builders: dict[str, Callable[[], Any]] = {
        contender.name: partial(OurUpdates, task, contender.options)
        for contender in TRAINING
        if contender.on_cpu or not task.runtime.reads_at_once
    }
    for name, compiled in TIMM.items():
        builders[name] = partial(TimmUpdates, task, compiled=compiled)
    return builders


def inference_builders(task: Task) -> dict[str, Callable[[], Any]]:
    """Return the same of an inference task."""

    def of_ours(way: str) -> Passes:
        return Passes(task, our_network(task, way))

    def of_timm(*, compiled: bool) -> Passes:
        return Passes(task, timm_network(task, compiled=compiled))

    builders: dict[str, Callable[[], Any]] = {way: partial(of_ours, way) for way, _ in INFERENCE}
    for name, compiled in TIMM.items():
        builders[name] = partial(of_timm, compiled=compiled)
    return builders
