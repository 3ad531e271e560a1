"""What is measured, a function each: every one puts its rows, the most important first."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from findings import Findings
from kernels import profile_steps
from photos import make_corpus
from sides import (
    INFERENCE,
    TIMM,
    TRAINING,
    Contender,
    OurUpdates,
    Task,
    inference_builders,
    training_builders,
)
from turns import Turns, ratio_of_rounds, take_turns, time_steps

from vitbase.config.learning import AugmentSection
from vitbase.curation.packing.split import pack_source
from vitbase.data.augment import TrainTransform
from vitbase.data.device_decode import DeviceDecoder, DeviceTrainLoader
from vitbase.data.loader import TrainLoader
from vitbase.errors import ConfigError
from vitbase.model.cost import count_flops
from vitbase.runtime import Runtime, available_cores
from vitbase.sources.folders import read_folder
from vitbase.sources.open import open_source
from vitbase.sources.source import Source
from vitbase.training.architecture import spec_of

LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Of losses near 7, from the CPU's in fp32: rounding alone."""
AGREEMENT = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Of what contenders compute: losses near 7, or logits near 0.5."""


@dataclasses.dataclass
class Bench:
    """What the jobs share.

    Attributes:
      peak: FLOPs per second that the device could do at its best, and who says so.
    """

    runtime: Runtime
    findings: Findings
    batch: int = 256
    size: int = 224
    rounds: int = 4
    turn_seconds: float = 0.8
    most_steps: int = 100
    photos: int = 64
    kilobytes: int = 110
    raw: int = 256
    peak: tuple[float, str] = (0.0, "")

    def task(self, model: str, **changes: Any) -> Task:
        whole = {"batch": self.batch, "size": self.size, **changes}
        return Task(self.runtime, model, **whole)

    @property
    def tag(self) -> str:
        return f"{self.runtime.precision}, batch {self.batch}"


def peer_name(name: str) -> str:
    return name.replace("timm", f"timm {timm.__version__}")


def measure_peak(bench: Bench) -> None:
    """Find what the device could do: its maker's figure, and a large matrix product of its own."""
    runtime = bench.runtime
    side = 8192 if runtime.device.type != "cpu" else 512
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(runtime.precision, torch.float32)
    a = torch.randn(side, side, device=runtime.device).to(kind)

    class Product:
        def step(self) -> torch.Tensor:
            return a @ a

    product = Product()
    time_steps(runtime, product, 3)
    measured = 2.0 * side**3 / min(time_steps(runtime, product, 10) for _ in range(3))
    stated = runtime.peak_flops()
    bench.peak = (stated, "its maker's figure") if stated else (measured, "a matrix product")
    name = f"peak/{side} x {side}, {runtime.precision}"
    told = "the maker's figure" if stated else None
    bench.findings.put(name, measured / 1e12, "TFLOP/s", told, stated / 1e12 if stated else None)


def train(bench: Bench, model: str, optimizer: str = "momentum") -> None:
    """Compare updates in images a second, utilisation and memory."""
    task = bench.task(model, optimizer=optimizer)
    flops = count_flops(spec_of(task.config({}))).training
    place = f"training/{model}/{optimizer}"
    peers = {contender.name: contender.peer for contender in TRAINING}

    def put(found: Mapping[str, Turns]) -> None:
        put_speeds(bench, place, found, peers)
        peak, told = bench.peak
        for name, peer, ours, theirs in pairs_of(found, peers):
            used = [bench.batch / turns.median * flops / peak for turns in (ours, theirs) if turns]
            unit = f"of the device ({told})"
            put_pair(bench, f"{place}/{name}/utilisation", used, unit, peer)
            if ours.peak_bytes is not None:
                held = [(turns.peak_bytes or 0) / 2**20 for turns in (ours, theirs) if turns]
                put_pair(bench, f"{place}/{name}/memory", held, "MiB", peer)

    run_turns(bench, place, training_builders(task), put)


def infer(bench: Bench, model: str) -> None:
    """Compare predictions in images a second, from pixels on the host to logits there."""
    place = f"inference/{model}"
    peers = dict(INFERENCE)

    def put(found: Mapping[str, Turns]) -> None:
        put_speeds(bench, place, found, peers)

    run_turns(bench, place, inference_builders(bench.task(model)), put)


def run_turns(
    bench: Bench,
    place: str,
    builders: Mapping[str, Callable[[], Any]],
    put: Callable[[Mapping[str, Turns]], None],
) -> None:
    def failed(name: str, error: Exception) -> None:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        bench.findings.leave_out(f"{place}/{name}", text[:300])

    take_turns(
        bench.runtime,
        builders,
        rounds=bench.rounds,
        turn_seconds=bench.turn_seconds,
        most_steps=bench.most_steps,
        failed=failed,
        tolerance=AGREEMENT[bench.runtime.precision],
        after_round=put,
    )


def pairs_of(
    found: Mapping[str, Turns], peers: Mapping[str, str]
) -> list[tuple[str, str, Turns, Turns | None]]:
    """Return our contenders, each beside timm's that it is compared with; timm's alone, too."""
    pairs = [(n, peer, found[n], found.get(peer)) for n, peer in peers.items() if n in found]
    missed = [name for name in TIMM if name in found and name not in peers.values()]
    return pairs + [(name, "", found[name], None) for name in missed]


def put_speeds(
    bench: Bench, place: str, found: Mapping[str, Turns], peers: Mapping[str, str]
) -> None:
    for name, peer, ours, theirs in pairs_of(found, peers):
        rates = [bench.batch / turns.median for turns in (ours, theirs) if turns]
        ratio = ratio_of_rounds(ours, theirs) if theirs else None
        put_pair(bench, f"{place}/{name}", rates, "images/s", peer, ratio)


def put_pair(
    bench: Bench,
    name: str,
    figures: list[float],
    unit: str,
    peer: str,
    ratio: float | None = None,
) -> None:
    """Put a figure of ours, beside timm's where there is one."""
    theirs = figures[1] if len(figures) > 1 else None
    told = peer_name(peer) if theirs is not None else None
    bench.findings.put(name, figures[0], unit, told, theirs, ratio)


def compare_losses(bench: Bench, model: str, *, batch: int = 8, updates: int = 4) -> None:
    """Compare the first losses with the CPU's in fp32, TF32 off: the same weights and pixels."""
    cpu = Runtime(torch.device("cpu"), "fp32")
    plain = Contender("eager", {"compile": False, "lr_init": 1e-3}, "")

    def losses(runtime: Runtime) -> list[float]:
        task = dataclasses.replace(bench.task(model, batch=batch), runtime=runtime)
        side = OurUpdates(task, plain.options)
        return [float(side.step()) for _ in range(updates)]

    wanted = losses(cpu)
    for precision, tolerance in LOSS_TOLERANCE.items():
        found = losses(dataclasses.replace(bench.runtime, precision=precision))  # type: ignore[arg-type]
        apart = max(abs(one - other) for one, other in zip(found, wanted, strict=True))
        name = f"losses/{model}/{precision}"
        bench.findings.put(name, apart, "apart from the CPU's", "tolerance", tolerance)


def feed(bench: Bench, model: str) -> None:
    """Train from photographs: JPEGs, and the same decoded to shards; beside pixels in memory."""
    task = bench.task(model)
    side = OurUpdates(task, {**TRAINING[0].options})
    for _ in range(3):
        side.step()
    one = time_steps(bench.runtime, side, 2)
    steps = max(2, min(bench.most_steps, round(4 * bench.turn_seconds / one)))
    best = bench.batch / time_steps(bench.runtime, side, steps)
    with tempfile.TemporaryDirectory() as made:
        folder = make_corpus(Path(made) / "photos", bench.kilobytes, bench.photos)
        pack_source(read_folder(folder, "folder"), f"{made}/raw", "train", raw=bench.raw)
        places = (("JPEG", f"{made}/photos"), ("raw shards", f"{made}/raw"))
        for kind, place in places:
            source = repeated(open_source(place, "train", "folder"), (steps + 4) * bench.batch)
            name = f"feeding/{model}/{kind}"
            put_fed(bench, name, source, side, steps, best)
            processes = partial(TrainLoader, processes=True)
            put_fed(bench, f"{name} by processes", source, side, steps, best, processes)
            if kind == "JPEG":
                name = f"{name} by the device"
                try:
                    decoder = DeviceDecoder(bench.runtime, side.learner.preprocess)
                except ConfigError as error:
                    bench.findings.leave_out(name, str(error))
                else:
                    by_device = partial(DeviceTrainLoader, decoder)
                    put_fed(bench, name, source, side, steps, best, by_device)


def put_fed(
    bench: Bench,
    name: str,
    source: Source,
    side: OurUpdates,
    steps: int,
    best: float,
    kind: Callable[..., TrainLoader] = TrainLoader,
) -> None:
    """Measure the loader alone, then updates that it feeds, and what share of them waits."""
    cores = available_cores()
    preprocess = side.learner.preprocess

    def loader() -> Any:
        return kind(
            source,
            TrainTransform(preprocess, AugmentSection()),
            seed=0,
            batch_size=bench.batch,
            pin_memory=bench.runtime.pin_memory,
        )

    class Alone:
        def __init__(self) -> None:
            self.batches = loader().epoch(0)

        def step(self) -> torch.Tensor:
            return next(self.batches).images

    alone = Alone()
    alone.step()
    rate = bench.batch / time_steps(bench.runtime, alone, steps)
    alone.batches.close()
    bench.findings.put(f"{name}, loader alone, {cores} cores", rate, "images/s")
    fed = loader()
    kept, side.batches = side.batches, fed.epoch(0)
    side.step()
    before = fed.seconds_waited
    seconds = time_steps(bench.runtime, side, steps)
    waited = (fed.seconds_waited - before) / (seconds * steps)
    side.batches.close()
    side.batches = kept
    bench.findings.put(name, bench.batch / seconds, "images/s", "pixels in memory", best)
    bench.findings.put(f"{name}, waiting", waited, "of the time")


def repeated(source: Source, images: int) -> Source:
    """Return a source that has its images several times, as an epoch is long."""
    times = -(-images // len(source))
    return dataclasses.replace(
        source, rows=np.tile(source.rows, times), labels=np.tile(source.labels, times)
    )


def profile(bench: Bench, model: str, contender: Contender) -> None:
    """Print where the time of an update goes: phases, and the kernels that take most of it."""
    side = OurUpdates(bench.task(model), contender.options)
    for _ in range(3):
        side.step()
    seconds = statistics.median(time_steps(bench.runtime, side, 1) for _ in range(5))
    place = f"profile/{model}/{contender.name}"
    found = profile_steps(bench.runtime, side, steps=2)
    whole = 1000 * seconds
    update = f"an update, {whole:.2f} ms"
    busy = sum(found.phases.values())
    bench.findings.put(f"{place}/device busy", busy, "ms", update, whole)
    for phase, milliseconds in found.phases.items():
        bench.findings.put(f"{place}/{phase}", milliseconds, "ms", update, whole)
    print(f"\n{place}: {found.describe(whole)}", flush=True)
