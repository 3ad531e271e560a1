"""What was measured: rows for a table and for a file, written anew after each measurement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]


class Goal(NamedTuple):
    """What a row should reach on an H100: its `ratio`, or its `value`."""

    name: str
    field: str
    least: float


GOALS = (
    Goal("training/ViT-B_16/momentum/compiled", "ratio", 1.10),
    Goal("training/ViT-B_16/momentum/compiled/utilisation", "value", 0.50),
    Goal("inference/ViT-B_16/compiled", "ratio", 1.10),
    Goal("inference/ViT-S_16/compiled", "ratio", 1.10),
    Goal("inference/ViT-L_16/compiled", "ratio", 1.10),
)
PREFIX = "gpu/"


class Findings:
    """Rows by their names, and what was left out.

    Args:
      path: of the JSON file; None: there is none. It is whole whenever the script ends.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.left_out: list[str] = []

    def put(
        self,
        name: str,
        value: float,
        unit: str,
        peer: str | None = None,
        peer_value: float | None = None,
        ratio: float | None = None,
    ) -> None:
        """Add a row, or replace what fewer rounds gave; and write all of them."""
        if ratio is None and peer_value:
            ratio = value / peer_value
        self.rows[name] = {
            "name": f"{PREFIX}{name}",
            "value": value,
            "unit": unit,
            "peer": peer,
            "peer_value": peer_value,
            "ratio": ratio,
        }
        if self.path is not None:
            beside = self.path.with_name(f"{self.path.name}.part")
            text = json.dumps([*self.rows.values()], indent=2, allow_nan=False)
            beside.write_text(f"{text}\n", encoding="utf-8")
            beside.replace(self.path)

    def leave_out(self, what: str, why: str) -> None:
        """Say that something has no row, and why."""
        self.left_out.append(f"{what}: {why}")
        print(f"Left out: {self.left_out[-1]}", flush=True)

    def show(self, job: str) -> None:
        """Print the rows of a job, whose names begin with its own."""
        rows = {name: row for name, row in self.rows.items() if name.startswith(f"{job}/")}
        if not rows:
            return
        goals = {goal.name: goal for goal in GOALS}
        print("\n| what | here | its peer | ratio | goal on an H100 |\n|---|---|---|---|---|")
        for name, row in rows.items():
            peer = row["peer"] or ""
            if row["peer_value"] is not None:
                peer = f"{_figure(row['peer_value'])}, {peer}"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
            goal = goals.get(name)
            wanted = "" if goal is None else f"{goal.field} at least {goal.least:g}"
            print(
                f"| {name} | {_figure(row['value'])} {row['unit']} | {peer} | {ratio} | {wanted} |"
            )
        print(flush=True)


def _figure(number: float) -> str:
    return f"{number:,.0f}" if math.fabs(number) >= 1000 else f"{number:.4g}"
