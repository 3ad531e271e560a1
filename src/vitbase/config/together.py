"""Which options of different sections cannot stand together. No torch here.

Each function raises a ValueError that names what the person gave, and what to leave out.
"""

from __future__ import annotations

from vitbase.config.learning import AugmentSection, OptimizerSection
from vitbase.config.options import DataSection, ModelSection, RunSection


def check_together(
    run: RunSection,
    data: DataSection,
    model: ModelSection,
    optimizer: OptimizerSection,
    augment: AugmentSection,
) -> None:
    """Check the options of a run against each other. Raises: ValueError."""
    if optimizer.optimizer == "muon" and run.parallel == "fsdp":
        raise ValueError(
            "optimizer muon needs whole matrices, and parallel fsdp shards them: give "
            "--parallel ddp, or --optimizer adamw"
        )
    if run.fp8:
        _check_fp8(run, model)
    if model.memory_budget is not None:
        _check_memory_budget(model)
    if run.device_graph:
        _check_device_graph(run, model, optimizer)
    if data.decoder == "device":
        _check_decoder(data, model, augment)
    if data.worker_processes:
        _check_worker_processes(data, model)


def _check_fp8(run: RunSection, model: ModelSection) -> None:
    if run.precision not in {"auto", "bf16"}:
        raise ValueError(
            f"fp8 is for what would be bf16, and precision is {run.precision}: give "
            f"--precision bf16, or leave out --fp8"
        )
    what = _first(
        (run.parallel == "fsdp", "parallel fsdp, whose shards are gathered in bf16"),
        (model.freeze_backbone, "freeze_backbone, which trains no block"),
    )
    if what:
        raise ValueError(f"fp8 has no use with {what}: leave out --fp8")


def _check_memory_budget(model: ModelSection) -> None:
    if model.activation_checkpointing:
        raise ValueError(
            "memory_budget and activation_checkpointing both say what is computed again"
        )
    if model.freeze_backbone:
        raise ValueError(
            "memory_budget has nothing to compute again with freeze_backbone, which keeps "
            "no activations of the blocks: leave out --memory_budget"
        )


def _check_device_graph(run: RunSection, model: ModelSection, optimizer: OptimizerSection) -> None:
    computes_again = model.activation_checkpointing or model.memory_budget is not None
    what = _first(
        (optimizer.optimizer not in {"momentum", "adamw"}, f"optimizer {optimizer.optimizer}"),
        (run.precision == "fp16", "precision fp16, whose loss scale is found by trial"),
        (run.parallel == "fsdp", "parallel fsdp"),
        ((run.num_devices or 1) > 1, f"num_devices {run.num_devices}"),
        (
            bool(model.dropout) and computes_again,
            "blocks that are computed again with dropout, whose random state the host keeps",
        ),
    )
    if what:
        raise ValueError(f"device_graph cannot record {what}: leave out --device_graph")


def _check_decoder(data: DataSection, model: ModelSection, augment: AugmentSection) -> None:
    what = _first(
        (augment.policy != "none", f"policy {augment.policy}"),
        (augment.color_jitter > 0, f"color_jitter {augment.color_jitter:g}"),
        (augment.erase_probability > 0, f"erase_probability {augment.erase_probability:g}"),
        (augment.train_crop != "random_resized", f"train_crop {augment.train_crop}"),
        (data.image_channels == 1, "image_channels 1"),
        (model.freeze_backbone, "freeze_backbone"),
    )
    if what:
        raise ValueError(
            f"decoder device crops, resizes and flips in colour, and no more; {what} needs "
            f"the host: leave out --decoder"
        )


def _check_worker_processes(data: DataSection, model: ModelSection) -> None:
    what = _first(
        (data.decoder == "device", "decoder device, which leaves them little to do"),
        (
            model.freeze_backbone and model.frozen_views != 0,
            "freeze_backbone, whose features are computed once (frozen_views)",
        ),
    )
    if what:
        raise ValueError(f"worker_processes has no use with {what}: leave out --worker_processes")


def _first(*cases: tuple[bool, str]) -> str | None:
    """Return what the first case that holds is about."""
    return next((what for holds, what in cases if holds), None)
