"""The same runs on whatever computes here: a CPU, and an accelerator where there is one.

`make test-gpu` runs those of the accelerator alone; without one they are skipped.
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_runs import TINY, losses_of, rows_of
from ranks import free_port, start_one, train_on, wait_for
from safetensors.torch import load_file

import vitbase
from vitbase.runtime import _join, local_runtime

FOUND = torch.accelerator.current_accelerator(check_available=True)
COUNT = torch.accelerator.device_count() if FOUND is not None else 0
BACKEND = "" if FOUND is None else torch.distributed.get_default_backend_for_device(FOUND)

without = pytest.mark.skipif(FOUND is None, reason="torch finds no accelerator here")
on_accelerator = [pytest.mark.gpu, without]
each_device = pytest.mark.parametrize(
    "target", ["CPU", pytest.param("auto", id="accelerator", marks=on_accelerator)]
)


def needs_accelerator(test: Any) -> Any:
    return pytest.mark.gpu(without(test))


SIX: dict[str, Any] = {"epoch_size": 1, "log_every_steps": 1, "lr_init": 0.003}
"""Six updates, each in the log."""
APART = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.005}
"""Losses near 2.3 may differ so much from those of a CPU in fp32."""


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory, tiny_idx: Path) -> list[float]:
    """The losses of a CPU in fp32."""
    folder = tmp_path_factory.mktemp("wanted") / "run"
    options = {**TINY, **SIX, "data_path": str(tiny_idx), "output_dir": str(folder)}
    vitbase.train(vitbase.load_config("fashion", **options))
    return losses_of(folder)


@each_device
@pytest.mark.parametrize("precision", APART)
def test_losses_are_those_of_a_cpu(tiny_config, wanted, target, precision):
    config = tiny_config(**SIX, device_target=target, precision=precision)
    vitbase.train(config)
    found = losses_of(config.output_dir)
    assert found == pytest.approx(wanted, abs=APART[precision])
    last = max((config.output_dir / "checkpoints").glob("train_vit_*"))
    kinds = {tensor.dtype for tensor in load_file(last / "weights.safetensors").values()}
    assert kinds == {torch.float32}
    scale = json.loads((last / "progress.json").read_text())["loss_scaler"].get("scale", 1.0)
    assert (scale > 1) == (precision == "fp16")


@each_device
def test_the_log_says_what_the_device_did(tiny_config, target):
    config = tiny_config(**SIX, device_target=target)
    vitbase.train(config)
    rows = [row for row in rows_of(config.output_dir) if "loss" in row]
    assert len(rows) == 6
    computes_itself = target == "CPU"
    for row in rows:
        assert ("launch_fraction" in row) == ("peak_memory_mib" in row) == (not computes_itself)
        assert 0 <= row.get("launch_fraction", 0) <= 1


@needs_accelerator
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_change_no_loss(tiny_config, wanted, precision):
    """On CPUs test_features.py does the same."""
    config = tiny_config(**SIX, device_target="auto", precision=precision, compile=True)
    vitbase.train(config)
    assert losses_of(config.output_dir) == pytest.approx(wanted, abs=APART[precision])


@each_device
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tiny_config, tmp_path, target):
    options = {
        **{**SIX, "device_target": target, "precision": "fp16", "optimizer": "adamw"},
        **{"stochastic_depth": 0.3, "mixup_alpha": 0.8, "checkpoint_every_steps": 4},
        "keep_checkpoint_max": 9,
    }
    ends = []
    for name in ("whole", "stopped"):
        config = tiny_config(**options, output_dir=str(tmp_path / name))
        vitbase.train(config)
        if name == "stopped":  # as if it had been after update 4: what came later is not there
            (config.output_dir / "checkpoints" / "train_vit_fashion-1_6").rename(tmp_path / "gone")
            (config.output_dir / "checkpoints" / "best.json").unlink()
            vitbase.train(config)
        ends.append(config.output_dir)
    assert losses_of(ends[0]) == losses_of(ends[1])
    for file in ("weights.safetensors", "training_state.safetensors"):
        one, other = (load_file(end / "checkpoints/train_vit_fashion-1_6" / file) for end in ends)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), file


def compare_engines(target: str, file: str) -> None:
    """Take updates alone, replicated and sharded, by the device's own backend, as one rank."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from vitbase.config.complete import Facts, complete
    from vitbase.config.config import Config
    from vitbase.data.loader import Batch
    from vitbase.data.mix import Mix
    from vitbase.model import build_model
    from vitbase.training.architecture import spec_of
    from vitbase.training.objective import Objective
    from vitbase.training.parallel import _shard
    from vitbase.training.schedule import Schedule
    from vitbase.training.step import Learner

    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", **here})
    on_device = local_runtime(target, precision="fp32")
    _join(on_device.device, timedelta(minutes=2))
    options = {"model": "testing", "num_classes": 10, "batch_size": 8, "lr_init": 0.02}
    sizes = {"image_height": 32, "image_width": 32, "precision": "fp32", "clip_norm": 0.5}
    completed = complete(Config().replace(**options, **sizes), Facts(), 1)
    config = completed.config
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    labels, places = torch.arange(8), torch.arange(8)
    batches = repeat(Batch(images, labels, places, torch.ones(8, dtype=torch.bool), 0))

    def losses(runtime: Any, engine: str) -> list[float]:
        torch.manual_seed(0)
        model = build_model(spec_of(config))
        torch.nn.init.normal_(model.head.weight, std=0.1)
        model = model.to(runtime.device).train()
        if engine == "fsdp":
            _shard(model, runtime)
        objective = Objective(config, np.zeros(8, np.int64), 10, runtime.device)
        schedule = Schedule(0.02, "constant", 0, 100)
        learner = Learner(model, config, runtime, completed.layout, schedule, objective)
        if engine == "ddp":
            learner.replicas._forward = DistributedDataParallel(model)
        taken = [learner.step(number, batches, Mix()) for number in range(4)]
        return [float(one.loss_sum) / 8 for one in taken]

    found: dict[str, Any] = {n: losses(on_device, n) for n in ("alone", "ddp", "fsdp")}
    found["cpu"] = losses(local_runtime("CPU", precision="fp32"), "alone")
    found["backend"] = distributed.get_backend_config()
    Path(file).write_text(json.dumps(found, default=str))
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("CPU", marks=pytest.mark.slow),  # test_ranks.py has several ranks of it
        pytest.param("auto", id="accelerator", marks=on_accelerator),
    ],
)
def test_one_rank_of_an_engine_computes_what_none_does(tmp_path, target):
    file = tmp_path / "losses.json"
    log = tmp_path / "log"
    assert wait_for([start_one(log, compare_engines, (target, str(file)))]) == [0], log.read_text()
    found = json.loads(file.read_text())
    assert len(set(found["alone"])) == 4  # it learns
    assert found["ddp"] == pytest.approx(found["alone"], abs=1e-5)
    assert found["fsdp"] == pytest.approx(found["alone"], abs=1e-5)
    assert found["alone"] == pytest.approx(found["cpu"], abs=1e-4)
    assert ("gloo" if target == "CPU" else BACKEND) in found["backend"]


@pytest.mark.gpu
@pytest.mark.skipif(COUNT < 2, reason=f"{COUNT} accelerators here, which makes no several ranks")
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_several_cards_compute_what_one_does(tiny_idx, tmp_path, parallel, precision):
    """On CPUs test_ranks.py does the same."""
    options: dict[str, Any] = {
        **{**TINY, **SIX, "data_path": str(tiny_idx), "device_target": "auto"},
        **{"precision": precision, "batch_size": 5, "global_batch": 10, "clip_norm": 0.5},
    }
    train_on(tmp_path / "one" / "run", 1, "fashion", **options)
    train_on(tmp_path / "two" / "run", 2, "fashion", parallel=parallel, **options)
    one, two = (losses_of(tmp_path / name / "run") for name in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-4 if precision == "fp32" else 0.02)
    rows = [row for row in rows_of(tmp_path / "two" / "run") if "loss" in row]
    assert all(0 <= row["communication_fraction"] <= 1 for row in rows)


@needs_accelerator
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_is_what_explain_says(tiny_config, precision):
    """Beyond the estimate come workspaces, batches on their way, and copies in half precision."""
    config = tiny_config(
        **{**SIX, "device_target": "auto", "precision": precision, "total_steps": 3},
        **{"model": "ViT-Ti_16", "image_height": 224, "image_width": 224, "batch_size": 20},
    )
    (fact,) = [one for one in vitbase.explain(config).facts if one.name == "memory estimate"]
    estimate = float(fact.value.removesuffix(" MiB").replace(",", ""))
    vitbase.train(config)
    peak = max(row["peak_memory_mib"] for row in rows_of(config.output_dir) if "loss" in row)
    assert 0.6 * estimate < peak < 1.6 * estimate + 200


@each_device
def test_commands_from_training_to_predictions(
    vitbase_command, tiny_idx, photo_folder, tmp_path, target
):
    run, device = tmp_path / "run", ["--device_target", target, "--precision", "fp32"]
    options = {**TINY, **SIX, "data_path": tiny_idx, "output_dir": run, "device_target": target}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    code, out, err = vitbase_command("train", "fashion", *words)
    assert (code, err) == (0, "")
    assert ("on CPU" if target == "CPU" else f"on {FOUND.type}") in out
    code, out, err = vitbase_command(
        "eval", "--checkpoint_path", run, "--data_path", tiny_idx, "--json", *device
    )
    assert (code, err) == (0, "")
    counted = json.loads(out.splitlines()[-1])
    assert counted["eval_top1"] == rows_of(run)[-1]["eval_top1"]
    answers = tmp_path / "answers.csv"
    words = ["predict", photo_folder, "--recursive", "--checkpoint_path", run, "--out", answers]
    code, _, err = vitbase_command(*words, *device[:2])
    assert code == 0, err
    assert len(answers.read_text().splitlines()) == 25  # a header, and each image
