"""Repeating an update whose loss or gradient was no number, from its black box, layer by layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitbase.config.config import Config, load_config
from vitbase.data.mix import Mix
from vitbase.data.normalize import normalize
from vitbase.errors import CheckpointError
from vitbase.files import read_json
from vitbase.model.vit import VisionTransformer
from vitbase.model.zoo import allocate, build_unfilled
from vitbase.runs.checkpoints import WEIGHTS_FILE, find_damage
from vitbase.runtime import Precision, Runtime, local_runtime
from vitbase.training.architecture import seed_generators
from vitbase.training.blackbox import BOX_FILE, CONFIG_FILE, INPUTS_FILE, VERSION, boxes_in
from vitbase.training.objective import Objective
from vitbase.training.parallel import HeadOnly
from vitbase.weights.files.safetensors import read_safetensors
from vitbase.weights.load import open_weights


@dataclasses.dataclass(frozen=True)
class Box:
    """What a box holds.

    Attributes:
      facts: of `box.json`.
      passes: for each forward pass, its tensors by name.
    """

    path: Path
    facts: dict[str, Any]
    config: Config
    model: VisionTransformer
    passes: tuple[dict[str, Tensor], ...]
    class_weights: Tensor | None
    mix: Mix


@dataclasses.dataclass
class Pass:
    """What a forward and backward pass has shown.

    Attributes:
      first_bad: the first thing that is no number, in the order of computing, in words.
      largest: absolute values of what the stem, each block and the head give.
      loss: summed over the images.
      images: whose outputs are no numbers.
    """

    first_bad: str | None = None
    largest: dict[str, float] = dataclasses.field(default_factory=dict)
    loss: float = math.nan
    gradient_norm: float = math.nan
    images: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Replay:
    """An update, repeated: in fp32, and where that gives numbers, in the run's own precision."""

    box: Box
    passes: dict[Precision, list[Pass]]

    def lines(self) -> list[str]:
        """Say what was found."""
        facts = self.box.facts
        kept = len(self.box.passes)
        several = "es" if kept > 1 else ""
        lines = [
            f"{self.box.path}: update {facts['update']} (epoch {facts['epoch']}, step "
            f"{facts['step']}), {facts['precision']} on {facts['device']}, "
            f"{kept} forward pass{several} of {facts['global_batch']} images in all"
        ]
        for precision, passes in self.passes.items():
            for number, (fact, seen) in enumerate(zip(facts["passes"], passes, strict=True)):
                which = f"{precision}, rank {fact['rank']}, pass {number + 1}"
                values = "  ".join(f"{name} {value:.3g}" for name, value in seen.largest.items())
                lines += [
                    f"{which}: {seen.first_bad or 'all is finite'}",
                    f"  loss {seen.loss:.6g}, gradient norm {seen.gradient_norm:.6g}",
                    f"  largest absolute values: {values}",
                ]
                if seen.images:
                    lines.append(f"  outputs are no numbers for {', '.join(seen.images)}")
        return [*lines, self.verdict]

    @property
    def verdict(self) -> str:
        """What follows for who has to mend it."""
        single, *half = ([seen.first_bad for seen in passes] for passes in self.passes.values())
        bad = next(filter(None, single), None)
        if bad is not None:
            return f"In fp32 too, {bad}: neither precision nor loss scale is the cause."
        lost = next((bad for part in half for bad in part if bad), None)
        precision = self.box.facts["precision"]
        if lost is not None:
            return f"In fp32 all is finite; in {precision}, {lost}: the precision is the cause."
        if precision != "fp32":
            return (
                f"All is finite here, in fp32 and in {precision}: the device, or what ranks send "
                f"each other, computed it otherwise."
            )
        kept, images = len(self.box.passes), self.box.facts["global_batch"]
        shown = sum(len(seen["labels"]) for seen in self.box.passes)
        if shown < images:
            return f"All is finite in the {kept} passes of the box, {shown} of {images} images."
        return "All is finite here: the device computed otherwise, or what was wrong has passed."

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "box": str(self.box.path),
            "update": self.box.facts["update"],
            "passes": {
                precision: [_as_json(dataclasses.asdict(seen)) for seen in passes]
                for precision, passes in self.passes.items()
            },
            "verdict": self.verdict,
        }


def _as_json(value: Any) -> Any:
    """Return a value in which numbers that JSON does not have are words."""
    if isinstance(value, dict):
        return {key: _as_json(inside) for key, inside in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def replay(folder: str, device_target: str = "auto") -> Replay:
    """Repeat the update of a box.

    Args:
      folder: the box, or a run folder: then its first box.
    Raises: CheckpointError if there is none, or it is damaged; DeviceError.
    """
    box = read_box(Path(folder))
    runtime = local_runtime(device_target, precision="fp32")
    done: dict[Precision, list[Pass]] = {"fp32": _repeat(box, runtime)}
    own: Precision = box.facts["precision"]
    if own != "fp32" and not any(seen.first_bad for seen in done["fp32"]):
        done[own] = _repeat(box, dataclasses.replace(runtime, precision=own))
    return Replay(box, done)


def read_box(folder: Path) -> Box:
    """Open a box. Raises: CheckpointError if there is none, or it is damaged."""
    found = [] if (folder / BOX_FILE).is_file() else boxes_in(folder)
    if found:
        folder = found[0]
    if not (folder / BOX_FILE).is_file():
        raise CheckpointError(
            f"{folder} is no black box, and no run that has one: an update whose loss or gradient "
            f"is NaN or infinite leaves one in RUN/blackbox/update-N."
        )
    damage = find_damage(folder, needed=(BOX_FILE, INPUTS_FILE, WEIGHTS_FILE))
    if damage is not None:
        raise CheckpointError(f"The black box {folder} is damaged: {damage}.")
    try:
        facts = read_json(folder / BOX_FILE)
        if facts["version"] != VERSION:
            raise CheckpointError(
                f"The black box {folder} is of version {facts['version']}, written by vitbase "
                f"{facts['written_by']}; this vitbase reads version {VERSION}."
            )
        return _opened(folder, facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"The black box {folder} is damaged: {type(error).__name__}, {error}."
        ) from None


def _opened(folder: Path, facts: dict[str, Any]) -> Box:
    tensors = read_safetensors(folder / INPUTS_FILE).tensors
    passes = tuple(
        {
            name.partition("/")[2]: tensor.read()
            for name, tensor in tensors.items()
            if name.startswith(f"{number}/")
        }
        for number in range(len(facts["passes"]))
    )
    for fact, seen in zip(facts["passes"], passes, strict=True):
        if not len(fact["images"]) == len(seen["images"]) == len(seen["labels"]):
            raise ValueError("its images, their names and labels are not as many")
    if not passes or facts["precision"] not in {"fp32", "bf16", "fp16"}:
        raise ValueError("it has no forward pass, or no precision")
    how = facts["mix"]
    return Box(
        folder,
        facts,
        load_config(str(folder / CONFIG_FILE)),
        _model_of(folder / WEIGHTS_FILE),
        passes,
        tensors["class_weights"].read() if "class_weights" in tensors else None,
        Mix(how["kind"], float(how["lam"]), tuple(how["box"])),
    )


def _model_of(weights: Path) -> VisionTransformer:
    """Open weights that may be no numbers, which `load_model` refuses."""
    opened = open_weights(weights)
    model = build_unfilled(opened.spec)
    allocate(model)
    model.load_state_dict({name: opened.file.tensors[name].read() for name in model.state_dict()})
    return model


def _repeat(box: Box, runtime: Runtime) -> list[Pass]:
    """Repeat each forward pass, and the backward pass after it; nothing is added up over them."""
    config, model = box.config, box.model.to(runtime.device)
    if config.model.freeze_backbone:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    model.train()
    weights = None if box.class_weights is None else box.class_weights.to(runtime.device)
    classes = model.spec.num_classes
    rows: tuple[int, ...] = (0,) if box.passes[0]["labels"].ndim == 1 else (0, classes)
    labels = np.zeros(rows, np.int64)
    if weights is None:
        config = config.replace(class_weights="none")
    objective = Objective(config, labels, classes, runtime.device, weights)
    done = []
    for fact, seen in zip(box.facts["passes"], box.passes, strict=True):
        # Dropout is drawn by the device's own generator: here it may be another one's.
        seed_generators(config.run.seed, 1, box.facts["update"] - 1, fact["rank"])
        model.zero_grad(set_to_none=True)
        done.append(_pass(box, model, objective, runtime, fact, seen))
    return done


def _pass(
    box: Box,
    model: VisionTransformer,
    objective: Objective,
    runtime: Runtime,
    fact: dict[str, Any],
    seen: dict[str, Tensor],
) -> Pass:
    result = Pass()
    scale = box.facts["loss_scale"] if runtime.precision == "fp16" else 1.0

    def note(what: str, value: object) -> None:
        bad = isinstance(value, Tensor) and not bool(torch.isfinite(value).all())
        if bad and result.first_bad is None:
            result.first_bad = what

    for name, parameter in model.named_parameters():
        note(f"the weight '{name}' is not finite before the update", parameter.detach())
    images, labels = runtime.send(seen["images"], seen["labels"])
    depth_scales = seen.get("depth_scales")
    if depth_scales is not None:
        (depth_scales,) = runtime.send(depth_scales)
    inputs, forward = images, HeadOnly(model) if box.facts["on_features"] else model
    if not box.facts["on_features"]:
        inputs = box.mix.images(normalize(images, box.config.data.preprocess), labels)
    note("what goes into the model is not finite", inputs)
    handles = [
        module.register_forward_hook(_watching(name, note, result))
        for name, module in model.named_modules()
        if name
    ]
    handles += [
        parameter.register_post_accumulate_grad_hook(_watching_gradient(name, note))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        with runtime.autocast():
            logits_BC = forward(inputs, depth_scales)
            loss = objective.loss_sum(logits_BC, labels, box.mix)
        note("the loss is not finite, though all outputs are", loss.detach())
        (loss * (scale / box.facts["global_batch"])).backward()
    finally:
        for handle in handles:
            handle.remove()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients) / scale
    note("the norm of the gradient overflows, though each of its numbers is finite", norm)
    result.loss, result.gradient_norm = float(loss.detach()), float(norm)
    finite_B = torch.isfinite(logits_BC.detach()).all(1).tolist()
    result.images = [
        name for name, finite in zip(fact["images"], finite_B, strict=True) if not finite
    ]
    return result


def _watching(name: str, note: Callable[[str, object], None], result: Pass) -> Callable[..., None]:
    room, _, rest = name.partition(".")
    is_part = (rest if room == "blocks" else name).count(".") or (room != "blocks" and rest)

    def watch(module: nn.Module, inputs: object, output: object) -> None:
        note(f"the first output that is not finite is that of '{name}'", output)
        if not is_part and isinstance(output, Tensor):
            result.largest[name] = float(output.detach().abs().max())

    return watch


def _watching_gradient(name: str, note: Callable[[str, object], None]) -> Callable[[Tensor], None]:
    def watch(parameter: Tensor) -> None:
        note(
            f"all outputs are finite, and the first gradient that is not is that of '{name}'",
            parameter.grad,
        )

    return watch
