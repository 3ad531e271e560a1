"""Speed of a training step beside timm's, in one process, taking turns.

Both sides start from the same weights and must agree on the loss before anything is timed; they
see the same batch, and use the same optimizer, number type and threads. timm is at its fastest
eager settings: fused attention, which is its default. Each round times some steps of one side,
then of the other; the ratio is the median over rounds of the ratio within a round, so that a
machine which is slower for a while is slower for both.

    python benchmarks/train_step.py --models ViT-B_16 ViT-S_16 ViT-Ti_16 --json train_step.json

The GELU is the tanh approximation, as in the JAX and MindSpore models and this package's default,
or erf, timm's default; both sides always have the same one.

The fraction of peak is the plain model's arithmetic (3 times its forward pass) for the time a
step takes, over the fastest large matrix product measured between the rounds. What a side saves
in arithmetic therefore counts as speed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.layers import use_fused_attn
from torch import Tensor, nn
from torch.nn import functional as F

from vitbase.model import ViTSpec, build_model, variant_spec
from vitbase.model.layers import Gelu
from vitbase.runtime import Runtime, local_runtime

PEERS = {
    "ViT-Ti_16": "vit_tiny_patch16_224",
    "ViT-S_16": "vit_small_patch16_224",
    "ViT-S_32": "vit_small_patch32_224",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-B_32": "vit_base_patch32_224",
    "ViT-L_16": "vit_large_patch16_224",
    "ViT-L_32": "vit_large_patch32_224",
    "ViT-H_14": "vit_huge_patch14_224",
}
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 1e-2}
PEAK_SIDE = 2048


@dataclass
class Side:
    """One of the two models, with its optimizer and the seconds its rounds took."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: list[float] = field(default_factory=list)

    def step(self, runtime: Runtime, images: Tensor, labels: Tensor) -> Tensor:
        with runtime.autocast():
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def wait_for_device(runtime: Runtime) -> None:
    if runtime.device.type != "cpu":
        torch.accelerator.synchronize()


def time_call(runtime: Runtime, call: Callable[[], object]) -> float:
    wait_for_device(runtime)
    start = time.perf_counter()
    call()
    wait_for_device(runtime)
    return time.perf_counter() - start


def build_sides(name: str, gelu: Gelu, runtime: Runtime) -> tuple[ViTSpec, Side, Side]:
    """Build both models with the same weights, the head not zero, so that all gradients flow."""
    spec = variant_spec(name, gelu=gelu)
    torch.manual_seed(0)
    mine = build_model(spec)
    assert mine.head is not None
    nn.init.normal_(mine.head.weight, std=0.02)
    peer = timm.create_model(PEERS[name], act_layer="gelu_tanh" if gelu == "tanh" else "gelu")
    state = {key.replace("stem.", "patch_embed."): v for key, v in mine.state_dict().items()}
    peer.load_state_dict(state)
    assert all(block.attn.fused_attn for block in peer.blocks)
    sides = []
    for model in (mine, peer):
        model.to(runtime.device).train()
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=1e-4,
            momentum=0.9,
            weight_decay=1e-4,
            fused=runtime.fused_optimizer,
        )
        sides.append(Side(model, optimizer))
    return spec, sides[0], sides[1]


def training_flops(spec: ViTSpec, batch: int) -> float:
    """Multiplications and additions of a step of the plain model: 3 times its forward pass."""
    tokens, patches = spec.num_tokens, spec.grid_hw[0] * spec.grid_hw[1]
    block = 4 * tokens * spec.width**2 + 2 * tokens**2 * spec.width
    block += 2 * tokens * spec.width * spec.mlp_dim
    stem = patches * spec.width * spec.in_channels * spec.patch_size**2
    head = spec.width * spec.num_classes
    # The stem has no gradient for its input: 2 of 3 products.
    return 2.0 * batch * (3 * spec.depth * block + 2 * stem + 3 * head)


def measure_peak(runtime: Runtime, a: Tensor) -> float:
    """Operations per second of one large matrix product, the better of three."""
    with runtime.autocast():
        seconds = min(time_call(runtime, lambda: a @ a) for _ in range(3))
    return 2.0 * PEAK_SIDE**3 / seconds


def compare(
    name: str, gelu: Gelu, args: argparse.Namespace, runtime: Runtime
) -> list[dict[str, object]]:
    spec, mine, peer = build_sides(name, gelu, runtime)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(args.batch, 3, *spec.image_size, generator=generator).to(runtime.device)
    labels = torch.randint(1000, (args.batch,), generator=generator).to(runtime.device)
    for index in range(2):  # the second loss comes after an update: the gradients agree too
        losses = [side.step(runtime, images, labels).item() for side in (mine, peer)]
        difference = abs(losses[0] - losses[1])
        print(f"{name} {gelu} GELU: loss {losses[0]:.6f}, timm {losses[1]:.6f} (step {index + 1})")
        assert difference <= LOSS_TOLERANCE[runtime.precision], f"losses differ by {difference}"
    square = torch.randn(PEAK_SIDE, PEAK_SIDE, device=runtime.device)
    peak = 0.0
    for index in range(args.rounds):
        peak = max(peak, measure_peak(runtime, square))
        for side in (mine, peer) if index % 2 == 0 else (peer, mine):
            seconds = time_call(
                runtime,
                lambda side=side: [side.step(runtime, images, labels) for _ in range(args.steps)],
            )
            side.seconds.append(seconds / args.steps)
    ratios = [theirs / ours for ours, theirs in zip(mine.seconds, peer.seconds, strict=True)]
    ratio = statistics.median(ratios)
    flops = training_flops(spec, args.batch)
    rows: list[dict[str, object]] = []
    rates = []
    for label, side in (("vitbase", mine), ("timm", peer)):
        median = statistics.median(side.seconds)
        rates.append(args.batch / median)
        print(
            f"  {label:8}{rates[-1]:9.2f} images/s   step {median:.4f} s "
            f"({min(side.seconds):.4f} to {max(side.seconds):.4f})   "
            f"{flops / median / peak:.1%} of the peak of {peak / 1e9:.0f} Gflop/s"
        )
    print(f"  ratio {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds)")
    tag = f"train_step/{name}/gelu_{gelu}/batch{args.batch}/{runtime.precision}"
    rows.append(
        {
            "name": tag,
            "value": rates[0],
            "unit": "images/s",
            "peer": f"timm {timm.__version__} {PEERS[name]}",
            "peer_value": rates[1],
            "ratio": ratio,
        }
    )
    fractions = [rate / args.batch * flops / peak for rate in rates]
    rows.append(
        {
            "name": f"{tag}/fraction_of_matmul_peak",
            "value": fractions[0],
            "unit": "1",
            "peer": f"timm {timm.__version__} {PEERS[name]}",
            "peer_value": fractions[1],
            "ratio": fractions[0] / fractions[1],
        }
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["ViT-B_16"], choices=list(PEERS))
    parser.add_argument("--gelu", nargs="+", default=["tanh", "erf"], choices=["tanh", "erf"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of each side in a round")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--device_target", default="auto")
    parser.add_argument("--precision", default="fp32", choices=sorted(LOSS_TOLERANCE))
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    runtime = local_runtime(args.device_target, precision=args.precision)
    print(f"{runtime.describe()}; torch {torch.__version__}; batch {args.batch}")
    assert use_fused_attn()
    rows = []
    for name in args.models:
        for gelu in args.gelu:
            rows += compare(name, gelu, args, runtime)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
