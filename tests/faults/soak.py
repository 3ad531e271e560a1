"""A long run of runs under faults drawn at random: `make soak`, half an hour on two ranks.

Runs of two ranks are killed, asked to stop, robbed of a rank or of the writer of checkpoints, given
a disk that refuses, and damaged between two starts, until the time is over; each is begun again
with the same command until it ends, and must then be, byte for byte and row for row, what a run is
that nobody disturbed. Then one run is left alone for some minutes and watched: its memory and its
open files. It prints the figures that stand in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import random
import re
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from faulty import TOUCHES, Plan  # noqa: E402
from forks import Forks  # noqa: E402
from made_runs import TINY, losses_of, rows_of  # noqa: E402
from processes import children_of, descendants, resident_and_open  # noqa: E402

from vitbase.runs.checkpoints import list_checkpoints  # noqa: E402
from vitbase.stopping import STOPPED  # noqa: E402

RANKS, EPOCHS, STEPS, BATCH = 2, 40, 6, 10
OPTIONS: dict[str, Any] = {
    **TINY,
    **{"epoch_size": EPOCHS, "batch_size": BATCH // RANKS, "num_devices": RANKS, "num_workers": 1},
    **{"log_every_steps": 1, "checkpoint_every_steps": 4, "keep_checkpoint_max": 3},
}
FAULTS = (
    *("kill all", "kill all", "kill a rank", "kill the writer", "ask to stop", "ask to stop"),
    *("disk refuses once", "disk stays full", "damage between starts", "leave alone"),
)


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.forks = Forks()
        self.data = make_images(folder / "data")
        self.injected: Counter[str] = Counter()
        self.lost = self.redone = self.ended = self.starts = 0
        self.whole = folder / "whole"
        code = self.forks.wait(self.start(self.whole))
        assert code == 0, self.said(self.whole)

    def start(self, run: Path, writer: Plan | None = None, **more: int) -> int:
        self.starts += 1
        options = {**OPTIONS, **more, "data_path": self.data, "output_dir": run}
        words = ["train", "fashion", *(f"--{name}={value}" for name, value in options.items())]
        return self.forks.start(words, run.with_suffix(".log"), writer=writer)

    def said(self, run: Path) -> str:
        return run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")[-5000:]

    def disturb(self, number: int) -> None:
        """Take one run to its end, through faults."""
        run = self.folder / f"run{number}"
        for _ in range(60):
            fault = self.random.choice(FAULTS)
            if self.once(run, fault):
                break
        else:
            raise AssertionError(f"{run} does not come to its end: {self.said(run)}")
        self.compare(run)
        self.ended += 1

    def once(self, run: Path, fault: str) -> bool:
        """Start a run and let a fault happen. Returns: whether it has come to its end."""
        before = updates_in(run)
        plan = None
        if fault.startswith("disk"):
            error = self.random.choice(("ENOSPC", "EIO", "EROFS"))
            at, touch = self.random.randint(1, 40), self.random.choice(TOUCHES)
            plan = Plan(str(run), error, at, touch, more=fault == "disk stays full")
        if fault == "damage between starts" and not damage_newest(run, self.random):
            return False
        process = self.start(run, writer=plan)
        if fault in {"kill all", "kill a rank", "kill the writer", "ask to stop"}:
            time.sleep(self.random.uniform(2, 14))
            if not self.strike(process, fault):
                fault = "leave alone"  # it was over, or had not begun
        code = self.forks.wait(process)
        self.injected[fault] += fault != "leave alone"
        assert code in {0, 2, STOPPED, -signal.SIGKILL}, (code, self.said(run))
        reached = max((row["step"] for row in rows_of_any(run)), default=0)
        stored = updates_in(run)
        assert stored >= before or fault == "damage between starts", (fault, before, stored)
        if code:
            self.redone += max(reached - stored, 0)
        return code == 0

    def strike(self, process: int, fault: str) -> bool:
        everyone = descendants(process)
        writers = [p for p in everyone if "vitbase.runs.writer" in command_of(p)]
        ranks = [p for p in children_of(process) if p not in writers]
        if fault == "kill all":
            victims, number = everyone, signal.SIGKILL
        elif fault == "kill a rank":
            victims, number = ranks[:1] or [], signal.SIGKILL
        elif fault == "kill the writer":
            victims, number = writers, signal.SIGKILL
        else:
            name = self.random.choice(("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"))
            victims, number = [process], getattr(signal, name)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, number)
        return bool(victims)

    def compare(self, run: Path) -> None:
        said = run.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in said, said[-5000:]
        ours, theirs = (
            list_checkpoints(place / "checkpoints")[-1].path for place in (run, self.whole)
        )
        for name in ("weights.safetensors", "training_state.safetensors"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), (run, name)
        assert losses_of(run) == losses_of(self.whole), run
        steps = [row["step"] for row in rows_of(run) if "loss" in row]
        # The same losses to the last digit: the same images, each once an epoch.
        self.lost += EPOCHS * STEPS - len({*steps})
        assert steps == [*range(1, EPOCHS * STEPS + 1)], run

    def watch(self, seconds: float) -> list[str]:
        """Leave a run alone, and return how the memory and files of its processes grew."""
        run = self.folder / "watched"
        process = self.start(run, epoch_size=100_000, log_every_steps=20)
        begun = time.monotonic()
        first: dict[int, tuple[int, int]] = {}
        while time.monotonic() - begun < seconds:
            time.sleep(1)
            if not first and time.monotonic() - begun > max(seconds / 5, 30):
                first = {p: resident_and_open(p) for p in descendants(process)}
        lines = []
        for member, (memory, files) in first.items():
            with contextlib.suppress(OSError):
                memory_now, files_now = resident_and_open(member)
                name = re.sub(r"^.*python\S* ", "", command_of(member))[:40]
                lines.append(
                    f"  {name}: {memory / 2**20:.0f} MiB, {memory_now / 2**20:.0f} MiB at the end; "
                    f"{files} open files, {files_now} at the end"
                )
        os.kill(process, signal.SIGTERM)
        code = self.forks.wait(process)
        assert code == STOPPED, (code, self.said(run))
        rows = rows_of(run)
        saved = sum("eval_loss" in row for row in rows)
        return [f"{rows[-1]['step']:,} updates, {saved:,} evaluations left alone", *lines]


def make_images(folder: Path) -> Path:
    """Write 60 training and 20 evaluation images."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, number in (("train", 60), ("t10k", 20)):
        pixels = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = struct.pack(">BBBB", 0, 0, 8, array.ndim)
            head += struct.pack(f">{array.ndim}I", *array.shape)
            path = folder / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def rows_of_any(run: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        return rows_of(run)
    return []


def updates_in(run: Path) -> int:
    """Return the update of the newest checkpoint, by its name."""
    found = list_checkpoints(run / "checkpoints")
    return (found[-1].epoch - 1) * STEPS + found[-1].step if found else 0


def damage_newest(run: Path, random: random.Random) -> bool:
    """Damage the newest of several checkpoints. Returns: whether there was one."""
    found = list_checkpoints(run / "checkpoints")
    if len(found) < 2:
        return False
    victim = random.choice(sorted(found[-1].path.iterdir()))
    content = bytearray(victim.read_bytes())
    kind = random.choice(("cut", "bit", "gone"))
    if kind == "gone":
        victim.unlink()
        return True
    if kind == "bit":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    victim.write_bytes(content if kind == "bit" else content[: len(content) // 2])
    return True


def command_of(process: int) -> str:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return " ".join(word.decode(errors="replace") for word in words)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), args.seed)
        number = 0
        while time.monotonic() - begun < 0.8 * 60 * args.minutes:
            number += 1
            soak.disturb(number)
        watched = soak.watch(0.2 * 60 * args.minutes)
        soak.forks.close()
    minutes = (time.monotonic() - begun) / 60
    computed = soak.ended * EPOCHS * STEPS * BATCH
    lines = [
        f"{minutes:.0f} minutes, {RANKS} ranks: {soak.injected.total()} faults, all survived:",
        *(f"  {count:4} {fault}" for fault, count in sorted(soak.injected.items()) if count),
        f"{soak.starts} starts; {soak.ended} runs of {EPOCHS * STEPS} updates ended, each equal to "
        "the undisturbed one byte for byte",
        f"samples lost: {soak.lost}; computed twice, as the last checkpoint was from before: "
        f"{soak.redone * BATCH:,} of {computed:,}",
        *watched,
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
