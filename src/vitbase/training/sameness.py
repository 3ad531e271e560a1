"""Whether two runs left the same: their last checkpoints, tensor by tensor, and their metrics."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from vitbase.errors import CheckpointError, first_few
from vitbase.files import parse_json
from vitbase.runs.checkpoints import CKPT_SUFFIX, Checkpoint
from vitbase.runs.folder import RunFolder
from vitbase.runs.progress import read_progress
from vitbase.training.state import Readers, stored_tensors
from vitbase.weights.files.safetensors import read_safetensors

_OF_THE_CLOCK = frozenset(
    {
        *("images_per_second", "data_wait_fraction", "communication_fraction"),
        *("checkpoint_fraction", "launch_fraction", "eval_seconds"),
        *("flops_utilisation", "peak_memory_mib"),
    }
)
"""What rows of metrics say of how fast the run was, which is never the same."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was compared, how it came out, and whether that is as it should be."""

    what: str
    outcome: str
    holds: bool


def last_checkpoint(run: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint of a run folder, if it has any."""
    return RunFolder(run).newest_whole()[0]


def updates_of(run: Path) -> int:
    """Return the updates after which a run would go on from here; 0 if from its start."""
    checkpoint = last_checkpoint(run)
    return read_progress(checkpoint.path).updates if checkpoint else 0


def compare_runs(run: Path, other: Path, *, tolerance: float = 0.0) -> list[Finding]:
    """Compare two runs that have ended.

    Args:
      tolerance: by which numbers in the metrics may differ, of themselves above 1; then how far
        tensors are apart is told, not judged: an optimizer that divides by the gradient's size
        makes whole steps of rounding where a gradient is next to nothing. 0: not in a bit.
    Raises: CheckpointError if one has no checkpoint.
    """
    places = []
    for folder in (run, other):
        found = last_checkpoint(folder)
        if found is None:
            raise CheckpointError(f"{folder} has no whole checkpoint.")
        places.append(found)
    ours, theirs = places
    findings = []
    if ours.path.name != theirs.path.name:
        outcome = f"{ours.path.name} instead of {theirs.path.name}"
        findings.append(Finding("last checkpoint", outcome, holds=False))
    ckpts = [place.weights for place in places]
    if any(path.suffix == CKPT_SUFFIX for path in ckpts):  # MindSpore's: weights and state in one
        holds = ckpts[0].read_bytes() == ckpts[1].read_bytes()
        findings.append(Finding("weights", "equal" if holds else "not equal", holds))
    else:
        judged = not tolerance
        weights = [_readers_of(path) for path in ckpts]
        states = [stored_tensors(place.path)() for place in places]
        findings.append(_compare_tensors("weights", *weights, judged=judged))
        findings.append(_compare_tensors("training state", *states, judged=judged))
    if not tolerance:
        # Each of them is a run of its own.
        numbers = [dataclasses.replace(read_progress(place.path), run="") for place in places]
        holds = numbers[0] == numbers[1]
        findings.append(Finding("progress", "equal" if holds else "not equal", holds))
    return [*findings, *_compare_metrics(run, other, tolerance)]


def _readers_of(weights: Path) -> Readers:
    return {name: tensor.read for name, tensor in read_safetensors(weights).tensors.items()}


def _compare_tensors(title: str, ours: Readers, theirs: Readers, *, judged: bool) -> Finding:
    if ours.keys() != theirs.keys():
        names = sorted(ours.keys() ^ theirs.keys())
        return Finding(title, f"one of them lacks {first_few(names)}", holds=False)
    differing, most = [], 0.0
    for name in ours:
        a, b = ours[name](), theirs[name]()
        if a.shape == b.shape and a.dtype == b.dtype and _bytes_of(a) == _bytes_of(b):
            continue
        differing.append(name)
        alike = a.shape == b.shape and a.numel() > 0
        far = float((a.double() - b.double()).abs().max()) if alike else math.inf
        most = max(most, math.inf if math.isnan(far) else far)
    if not judged:
        outcome = f"{len(ours)} tensors, {most:.2g} apart at most"
        return Finding(title, outcome, holds=math.isfinite(most))
    if not differing:
        return Finding(title, f"{len(ours)} tensors, equal bit for bit", holds=True)
    outcome = f"{len(differing)} of {len(ours)} tensors differ, by {most:.2g} at most"
    return Finding(title, f"{outcome}: {first_few(differing)}", holds=False)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _compare_metrics(run: Path, other: Path, tolerance: float) -> list[Finding]:
    findings = []
    for title, key in (("training rows", "loss"), ("evaluation rows", "eval_loss")):
        ours, theirs = (_rows(folder, key) for folder in (run, other))
        repeated = [f"{step}" for step, count in Counter(s for s, _ in ours).items() if count > 1]
        missing = sorted({step for step, _ in theirs} ^ {step for step, _ in ours})
        outcome, holds = f"{len(ours)}, each step once; ", True
        if repeated or missing:
            words = [f"{first_few(repeated)} more than once"] if repeated else []
            if missing:
                words.append(f"{first_few(list(map(str, missing)))} in one of them only")
            findings.append(Finding(title, f"steps {', '.join(words)}", holds=False))
            continue
        pairs = [(s, a, b) for (s, a), (_, b) in zip(ours, theirs, strict=True)]
        most = max((_distance(a, b) for _, a, b in pairs), default=0.0)
        differing = [f"{step}" for step, a, b in pairs if not _distance(a, b) <= tolerance]
        if differing:
            outcome, holds = f"they differ at steps {first_few(differing)}; ", False
        outcome += f"{most:.2g} apart at most" if tolerance or not holds else "equal"
        findings.append(Finding(title, outcome, holds))
    return findings


def _rows(run: Path, key: str) -> list[tuple[int, dict[str, Any]]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(parse_json, lines) if key in row]
    return [(row["step"], {k: v for k, v in row.items() if k not in _OF_THE_CLOCK}) for row in rows]


def _distance(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return by how much two rows differ at most; infinity where they say other things."""
    if ours.keys() != theirs.keys():
        return math.inf
    most = 0.0
    for name, a in ours.items():
        b = theirs[name]
        if a != b:
            numbers = isinstance(a, int | float) and isinstance(b, int | float)
            most = max(most, abs(a - b) / max(1.0, abs(b)) if numbers else math.inf)
    return most
