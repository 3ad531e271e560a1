"""Everything that counts on one accelerator, in under nine minutes, beside timm on the same card.

    python benchmarks/gpu/run.py --json gpu.json
    python benchmarks/gpu/run.py --tiny            # the same code on a CPU, in a minute

Training (batch 256, bf16; momentum and AdamW; eager and compiled) and inference of B/16, S/16 and
L/16, utilisation, memory, kernels of an update, losses beside the CPU's, and the loader that feeds
it. Contenders take turns; rows are written after every round, the most important first, and what
time leaves no room for is named at the end. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import timm
import torch
from clock import Job, work_off
from findings import Findings
from jobs import Bench, compare_losses, feed, infer, measure_peak, profile, train
from sides import TRAINING
from turns import forget

from vitbase.runtime import local_runtime


def jobs_of(bench: Bench, base: str, small: str, large: str) -> list[Job]:
    """Return what is to be measured, the most important first."""
    compiled, eager = TRAINING[0], TRAINING[1]
    return [
        ("peak", partial(measure_peak, bench)),
        (f"training/{base}/momentum", partial(train, bench, base)),
        (f"profile/{base}/compiled", partial(profile, bench, base, compiled)),
        (f"inference/{base}", partial(infer, bench, base)),
        (f"losses/{small}", partial(compare_losses, bench, small)),
        (f"feeding/{base}", partial(feed, bench, base)),
        (f"training/{base}/adamw", partial(train, bench, base, "adamw")),
        (f"training/{small}/momentum", partial(train, bench, small)),
        (f"training/{large}/momentum", partial(train, bench, large)),
        (f"inference/{small}", partial(infer, bench, small)),
        (f"inference/{large}", partial(infer, bench, large)),
        (f"profile/{base}/eager", partial(profile, bench, base, eager)),
        (f"training/{small}/adamw", partial(train, bench, small, "adamw")),
        (f"training/{large}/adamw", partial(train, bench, large, "adamw")),
    ]


def make_tiny(bench: Bench) -> tuple[str, str, str]:
    """Shrink everything, and compile without a compiler: the same way through the code."""
    plain = torch.compile

    @functools.wraps(plain)
    def compile_nothing(*args: Any, **options: Any) -> Any:
        return plain(*args, **{**options, "backend": "eager"})

    torch.compile = compile_nothing  # type: ignore[assignment]
    torch.set_num_threads(1)
    bench.batch, bench.size, bench.raw, bench.photos, bench.kilobytes = 4, 32, 48, 8, 20
    bench.rounds, bench.turn_seconds, bench.most_steps = 2, 0.02, 4
    return ("testing",) * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file, as they come")
    parser.add_argument("--seconds", type=float, default=510, help="after which it ends")
    parser.add_argument("--device_target", default="auto")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp16", "fp32"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", help="jobs whose names contain this")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    args = parser.parse_args()
    started = time.perf_counter()
    target = "CPU" if args.tiny else args.device_target
    runtime = local_runtime(target, precision=args.precision)
    if runtime.device.type == "cpu" and not args.tiny:
        parser.error("there is no accelerator here; --tiny runs the same code on the CPU")
    torch.backends.cudnn.benchmark = True  # as timm's train.py does
    bench = Bench(runtime, Findings(args.json), batch=args.batch, rounds=args.rounds)
    models = make_tiny(bench) if args.tiny else ("ViT-B_16", "ViT-S_16", "ViT-L_16")
    print(
        f"{runtime.machine}; torch {torch.__version__}, timm {timm.__version__}; {bench.tag}, "
        f"{bench.rounds} rounds; at most {args.seconds:.0f} s",
        flush=True,
    )
    jobs = dict.fromkeys(name for name, _ in jobs_of(bench, *models))
    known = dict(reversed(jobs_of(bench, *models)))  # of one name: the first, where models are one
    chosen = [(name, known[name]) for name in jobs if not args.only or args.only in name]
    seconds = args.seconds - (time.perf_counter() - started)
    work_off(bench.findings, chosen, seconds, after_each=partial(forget, runtime))
    print(f"{len(bench.findings.rows)} rows in {time.perf_counter() - started:.0f} s")
    for line in bench.findings.left_out:
        print(f"Left out: {line}")


if __name__ == "__main__":
    main()
