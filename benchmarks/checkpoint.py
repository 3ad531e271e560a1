"""What saving costs a run: this package's saver, torch.save in place, torch's own async_save.

    python benchmarks/checkpoint.py --model ViT-S_16 --rounds 5

One process trains a model with AdamW on a batch that is always the same. A turn is some steps after
a save by one of the contenders, or after none; turns alternate, and a turn ends when its checkpoint
is whole, so that what goes on beside the training counts. What a save costs is the median over
rounds of how much longer its turn took than the one without; divided by a minute, that is the part
of the time that saving every minute takes. The stall is how long the save itself keeps the loop
from its next step.

- `vitbase`: the saver of a run: copied in memory, written by a process of its own, with checksums,
  synced, renamed, the one before removed.
- `torch.save`: model and optimizer, in place, synced.
- `async_save`: torch.distributed.checkpoint's, in a process of its own, into its default files.
- `async_save, HF`: the same into safetensors, as Hugging Face has them (in a thread: its planner
  is not for a process).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from vitbase.config.batch import BatchLayout
from vitbase.config.config import load_config
from vitbase.data.loader import Batch, TrainLoader
from vitbase.data.mix import Mix
from vitbase.files import sync
from vitbase.model.zoo import create_model
from vitbase.runs.folder import RunFolder
from vitbase.runs.journal import Journal
from vitbase.runtime import local_runtime
from vitbase.training.guard import Guard
from vitbase.training.objective import Objective
from vitbase.training.saver import Saver
from vitbase.training.schedule import Place, Schedule
from vitbase.training.step import Learner

RATE = 1e-4
MINUTE = 60.0
Save = Callable[[int], Callable[[], object]]
"""Saves after so many updates; returns what waits until the checkpoint is whole."""


def build_learner(name: str, size: int) -> tuple[Learner, Callable[[int], None]]:
    config = load_config("vit_scratch", lr_init=RATE, model=name, optimizer="adamw")
    runtime = local_runtime("CPU", 0, "fp32")
    generator = torch.Generator().manual_seed(1)
    given = Batch(
        torch.randint(0, 256, (size, 224, 224, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 1000, (size,), generator=generator),
        torch.arange(size),
        torch.ones(size, dtype=torch.bool),
        0,
    )
    objective = Objective(config, np.zeros(1, np.int64), 1000, runtime.device)
    schedule = Schedule(RATE, "constant", 0, 10**6)
    layout = BatchLayout(size, 1, 1, size)
    model = create_model(name).train()
    learner = Learner(model, config, runtime, layout, schedule, objective)
    return learner, lambda update: cast(None, learner.step(update, iter([given]), Mix()))


def saves(learner: Learner, folder: Path) -> dict[str, Save]:
    config = load_config("vit_scratch", keep_checkpoint_max=1, output_dir=str(folder / "vitbase"))
    run = RunFolder(config.output_dir)
    run.start(config)
    loader = cast(TrainLoader, None)  # names images of bad updates, of which there are none
    guard = Guard(learner.runtime, loader, lambda: "")
    journal = Journal(run.metrics_file)
    saver = Saver(run, learner, guard, journal, config, (), None)

    def ours(update: int) -> Callable[[], object]:
        saver.save(Place(update, 10**6, 10**6), None)
        return saver.finish

    def in_place(update: int) -> Callable[[], object]:
        place = folder / "torch.save"
        content = {"model": learner.model.state_dict(), "optimizer": learner.optimizer.state_dict()}
        torch.save(content, place.with_suffix(".new"))
        sync(place.with_suffix(".new"))
        os.replace(place.with_suffix(".new"), place)
        return lambda: None

    def beside(**options: Any) -> Save:
        def save(update: int) -> Callable[[], object]:
            place = folder / f"async-{update}"
            model, optimizer = get_state_dict(learner.model, learner.optimizer)
            arguments = {name: value(place) for name, value in options.items()}
            made: Any = async_save({"model": model, "optimizer": optimizer}, **arguments)

            def wait() -> None:
                made.result()
                shutil.rmtree(place)

            return wait

        return save

    return {
        "vitbase": ours,
        "torch.save": in_place,
        "async_save": beside(
            checkpoint_id=lambda place: place,
            async_checkpointer_type=lambda place: AsyncCheckpointerType.PROCESS,
        ),
        "async_save, HF": beside(storage_writer=hf_writer),
    }


def hf_writer(place: Path) -> HuggingFaceStorageWriter:
    return HuggingFaceStorageWriter(path=str(place))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-S_16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    parser.add_argument("--contenders", nargs="+")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        learner, step = build_learner(args.model, args.batch)
        contenders: dict[str, Save | None] = {"none": None, **saves(learner, Path(folder))}
        if args.contenders:
            contenders = {k: v for k, v in contenders.items() if k in {"none", *args.contenders}}
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        stalls: dict[str, list[float]] = {name: [] for name in contenders}
        update = 0
        for number in range(args.rounds + 1):
            for name, save in contenders.items():
                started = time.perf_counter()
                wait = save(update) if save else lambda: None
                stall = time.perf_counter() - started
                for _ in range(args.steps):
                    step(update)
                    update += 1
                wait()
                if number:  # the first round starts processes and takes memory
                    seconds[name].append(time.perf_counter() - started)
                    stalls[name].append(stall)
        dist.destroy_process_group()
        report(args, learner, seconds, stalls)


def report(
    args: argparse.Namespace,
    learner: Learner,
    seconds: dict[str, list[float]],
    stalls: dict[str, list[float]],
) -> None:
    values = sum(p.numel() for p in learner.model.parameters())
    one_step = statistics.median(seconds["none"]) / args.steps
    print(
        f"{args.model}, {values:,} parameters with AdamW: {12 * values / 2**20:.0f} MiB; batch "
        f"{args.batch}, {one_step:.2f} s a step, {args.rounds} rounds of {args.steps} steps"
    )
    print(
        f"{'':16}{'stall (s)':>10}{'of a step':>11}{'cost (s)':>10}{'every minute':>14}  (rounds)"
    )
    rows = []
    for name in list(seconds)[1:]:
        more = [own - none for own, none in zip(seconds[name], seconds["none"], strict=True)]
        cost, stall = statistics.median(more), statistics.median(stalls[name])
        part = cost / MINUTE
        print(
            f"{name:16}{stall:10.3f}{stall / one_step:11.1%}{cost:10.2f}{part:14.2%}"
            f"  ({min(more):.2f} to {max(more):.2f} s)"
        )
        rows.append(
            {
                "name": f"{args.model} save by {name}",
                "value": part,
                "unit": "of the time, saving every minute",
                "peer": "no saving",
                "peer_value": one_step,
                "ratio": 1 + part,
            }
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
