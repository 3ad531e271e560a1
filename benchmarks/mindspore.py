"""Speed and memory of a training step on MindSpore: the engine, torch's, and plain MindSpore.

    .venv-mindspore/bin/python benchmarks/mindspore.py --models ViT-Ti_16 ViT-B_16

Every contender is a process of its own, as MindSpore's settings are of a process; while one takes
its steps, the others are stopped. All start from the same weights and see the same batch, and must
agree on the losses before anything is timed. A ratio is the median over rounds of the ratio within
a round, so that a machine which is slower for a while is slower for all.

- `engine`: `MindSporeLearner` as `--engine mindspore` runs it; `engine PyNative` and `engine graph`
  run it operator by operator and compiled, whichever is the default.
- `torch`: `Learner` of the torch engine, eager.
- `plain PyNative`, `plain graph`: the loop of MindSpore's tutorials, over the network that a
  reader of its documentation writes (`nn.Dense`, `nn.Conv2d`, `nn.GELU`, `ops.softmax`).
- `vit_base`, `vit_base graph`: the public network, in the same loop; give its modeling_ms.py with
  --vit_base. Its dropout of rate 0 is left out, which MindSpore 2 does not build.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
# This file has MindSpore's name: where it lies, Python would find it instead.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
TOLERANCE = 2e-5
RATE = 1e-3
SEED = 0


def batch(size: int) -> tuple[Any, Any]:
    import numpy as np

    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (size, 224, 224, 3), dtype=np.uint8)
    return pixels, generator.integers(0, 1000, size)


def start_weights(name: str) -> Any:
    """Build the model that all start from; its head is not zero, so that all gradients flow."""
    import torch

    from vitbase.model.zoo import create_model

    torch.manual_seed(SEED)
    return create_model(name, head_init_std=0.02)


def learner(name: str, size: int, engine: str) -> Callable[[], float]:
    """Build a run's learner of one of the engines, without its loop."""
    import numpy as np
    import torch

    from vitbase.config.batch import BatchLayout
    from vitbase.config.config import load_config
    from vitbase.data.loader import Batch
    from vitbase.data.mix import Mix
    from vitbase.training.objective import Objective
    from vitbase.training.schedule import Schedule

    config = load_config("imagenet", lr_init=RATE, engine=engine)
    pixels, labels = batch(size)
    given = Batch(
        torch.from_numpy(pixels),
        torch.from_numpy(labels),
        torch.arange(size),
        torch.ones(size, dtype=torch.bool),
        0,
    )
    layout = BatchLayout(size, 1, 1, size)
    schedule = Schedule(RATE, "constant", 0, 10**6)
    objective = Objective(config, np.zeros(1, np.int64), 1000, torch.device("cpu"))
    model = start_weights(name)
    made: Any
    if engine == "torch":
        from vitbase.runtime import local_runtime
        from vitbase.training.step import Learner

        made = Learner(
            model.train(), config, local_runtime("CPU", 0, "fp32"), layout, schedule, objective
        )
    else:
        from vitbase.mindspore.devices import joined_runtime
        from vitbase.mindspore.learner import MindSporeLearner, Twin

        with joined_runtime("CPU", 0, "fp32") as runtime:
            twin = Twin.of(model, runtime, config.data.preprocess)
        made = MindSporeLearner(twin, config, runtime, layout, schedule, objective)
    taken = iter(range(10**6))
    return lambda: float(made.step(next(taken), iter([given]), Mix()).loss_sum) / size


def plain(name: str, size: int, graph: bool, vit_base: str | None) -> Callable[[], float]:
    """Build the tutorials' loop over a network of MindSpore's."""
    import mindspore as ms
    from mindspore import nn

    ms.set_device("CPU")
    ms.set_context(mode=ms.GRAPH_MODE if graph else ms.PYNATIVE_MODE)
    if vit_base:
        network = public_network(name, vit_base)
    else:
        documented = load_source("documented_vit", HERE / "documented_vit.py")
        network = fill(documented.build_network(start_weights(name).spec), name)
    parameters = network.trainable_params()
    of_norms = [p for p in parameters if "gamma" in p.name or "beta" in p.name]
    others = [p for p in parameters if "gamma" not in p.name and "beta" not in p.name]
    groups = [
        {"params": others, "weight_decay": 1e-4},
        {"params": of_norms, "weight_decay": 0.0},
        {"order_params": parameters},
    ]
    optimizer = nn.Momentum(groups, learning_rate=RATE, momentum=0.9)
    loss = nn.SoftmaxCrossEntropyWithLogits(sparse=True, reduction="mean")
    images, labels = normalised(size)
    if graph:
        with_loss = nn.WithLossCell(network, loss)
        train = nn.TrainOneStepCell(with_loss, optimizer).set_train()
        return lambda: float(train(images, labels).asnumpy())
    step = ms.value_and_grad(
        lambda x, y: loss(network(x), y), None, optimizer.parameters, has_aux=False
    )

    def take() -> float:
        value, gradients = step(images, labels)
        optimizer(gradients)
        return float(value.asnumpy())

    return take


def normalised(size: int) -> tuple[Any, Any]:
    import numpy as np
    import torch
    from mindspore import Tensor

    from vitbase.config.preprocess import default_preprocess
    from vitbase.data.normalize import normalize

    pixels, labels = batch(size)
    images = normalize(torch.from_numpy(pixels), default_preprocess(224, 224, 3)).contiguous()
    return Tensor(images.numpy()), Tensor(labels.astype(np.int32))


def fill(network: Any, name: str) -> Any:
    """Give a network with vit_base's names the weights that all start from."""
    from mindspore import Tensor

    from vitbase.mindspore.learner import arrays_of

    model = start_weights(name)
    arrays = arrays_of(model.state_dict(), model.spec)
    for path, parameter in network.parameters_and_names():
        parameter.name = path
        parameter.set_data(Tensor(arrays[path].copy()))
    return network.set_train()


def load_source(name: str, path: Path) -> Any:
    """Load a Python file as a module of a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a graph looks for its source
    spec.loader.exec_module(module)
    return module


def public_network(name: str, path: str) -> Any:
    """Build the public vit_base's network from its source."""
    from mindspore import nn

    dropout = nn.Dropout
    nn.Dropout = lambda *rates, **more: nn.Identity()
    try:
        module = load_source("modeling_ms", Path(path))
        ours = start_weights(name).spec
        config = SimpleNamespace(
            transformer_num_heads=ours.num_heads,
            hidden_size=ours.width,
            transformer_mlp_dim=ours.mlp_dim,
            transformer_num_layers=ours.depth,
            transformer_attention_dropout_rate=0.0,
            transformer_dropout_rate=0.0,
            patches_grid=None,
            patches_size=ours.patch_size,
            classifier="token",
        )
        return fill(module.VisionTransformer(config, num_classes=1000), name)
    finally:
        nn.Dropout = dropout


def serve(args: argparse.Namespace) -> None:
    """Be a contender: take steps when told to, and say how long they took."""
    os.environ.setdefault("GLOG_v", "3")
    kind, _, mode = args.serve.partition(" ")
    if kind == "torch":
        import torch

        torch.set_num_threads(args.threads)
        take = learner(args.models[0], args.batch, "torch")
    elif kind == "engine":
        import vitbase.mindspore.learner as ours

        if mode:
            ours.COMPILED = mode == "graph"
        take = learner(args.models[0], args.batch, "mindspore")
    else:
        path = args.vit_base if kind == "vit_base" else None
        take = plain(args.models[0], args.batch, mode == "graph", path)
    for line in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        losses = [take() for _ in range(int(line))]
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {"losses": losses, "seconds": seconds, "cpu": cpu, "memory": memory}
        print(f"\n{json.dumps(answer)}", flush=True)


class Contender:
    """A process that takes steps, and is stopped while others do."""

    def __init__(self, kind: str, model: str, args: argparse.Namespace) -> None:
        self.kind = kind
        words = [sys.executable, __file__, "--serve", kind, "--models", model]
        words += ["--batch", str(args.batch), "--threads", str(args.threads)]
        words += ["--vit_base", args.vit_base] if args.vit_base else []
        # libgomp would take fewer threads on a machine that had been busy for a quarter of an hour.
        variables = {"OMP_NUM_THREADS": str(args.threads), "OMP_DYNAMIC": "false"}
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **variables},
        )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.memory = 0.0

    def take(self, steps: int) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"losses"'):
                break
        else:
            raise SystemExit(f"{self.kind} ended")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        self.seconds.append(answer["seconds"] / steps)
        self.cpu.append(answer["cpu"] / steps)
        self.memory = answer["memory"]
        return list(answer["losses"])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(model: str, args: argparse.Namespace) -> list[dict[str, object]]:
    kinds = list(args.contenders)
    contenders = [Contender(kind, model, args) for kind in kinds]
    try:
        losses = {c.kind: c.take(3) for c in contenders}  # compiles, and agrees after two updates
        print(f"{model}, batch {args.batch}: losses of three steps")
        for kind, found in losses.items():
            print(f"  {kind:16} {'  '.join(f'{loss:.6f}' for loss in found)}")
            differences = [abs(a - b) for a, b in zip(found, losses[kinds[0]], strict=True)]
            assert max(differences) <= TOLERANCE, f"{kind} computes something else"
        first = [contender.seconds.pop() for contender in contenders]
        for contender in contenders:
            contender.cpu.clear()
        for number in range(args.rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                contender.take(args.steps)
    finally:
        for contender in contenders:
            contender.end()
    base = next(c for c in contenders if c.kind == args.peer)
    rows: list[dict[str, object]] = []
    print(f"  {'':16} images/s  step (s)   CPU (s)  speed / {args.peer} (rounds)     memory")
    for contender, started in zip(contenders, first, strict=True):
        ratios = [theirs / own for theirs, own in zip(base.seconds, contender.seconds, strict=True)]
        ratio, median = statistics.median(ratios), statistics.median(contender.seconds)
        print(
            f"  {contender.kind:16} {args.batch / median:8.2f}  {median:8.3f}  "
            f"{statistics.median(contender.cpu):8.3f}  "
            f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})   {contender.memory:7.0f} MB"
            f"   first three steps {3 * started:.0f} s"
        )
        rows.append(
            {
                "name": f"mindspore/{model}/batch{args.batch}/{contender.kind}",
                "value": args.batch / median,
                "unit": "images/s",
                "peer": args.peer,
                "peer_value": args.batch / statistics.median(base.seconds),
                "ratio": ratio,
            }
        )
    return rows


ALL = ("engine graph", "engine PyNative", "torch", "plain PyNative", "plain graph")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-Ti_16", "ViT-B_16"])
    parser.add_argument("--contenders", nargs="+", default=list(ALL))
    parser.add_argument("--peer", default="torch", help="the contender that ratios are to")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="of each contender in a round")
    parser.add_argument("--vit_base", help="modeling_ms.py of the public vit_base")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args)
        return
    rows = [row for model in args.models for row in compare(model, args)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
