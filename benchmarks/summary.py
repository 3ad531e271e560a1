"""One page of all numbers: what was measured, beside whom, its limit and its goal.

    python benchmarks/summary.py            # print the table
    python benchmarks/summary.py --write    # put it into README.md, and draw summary.svg

`results/` holds what the scripts wrote with --json (`earlier.json`: figures of README.md's tables
whose files were not kept), `goals.json` which of them count, and against what. A row of it names a
`result`; the goal is for its `ratio`, or its `value` where `field` says so; `better` is more, less,
or near, where the goal is how far from 1 it may be. What missed its goal says why (`missed`), as
does what has not run yet (`pending`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- summary.py -->", "<!-- end of summary.py -->"


def read_rows() -> list[dict[str, Any]]:
    """Return the rows of goals.json, each with its `measured` figure, `reached` share and result.

    All three are None of what has not run yet, and says so.

    Raises: KeyError for a goal without a result, ValueError for one missed without a reason, or
      said to be pending that has run.
    """
    results: dict[str, dict[str, Any]] = {}
    for path in sorted(HERE.glob("results/*.json")):
        results |= {row["name"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    rows = json.loads((HERE / "goals.json").read_text(encoding="utf-8"))
    for row in rows:
        row["of"] = row["measured"] = row["reached"] = None
        if row["result"] not in results and row.get("pending"):
            continue
        if row.get("pending"):
            raise ValueError(f"{row['result']} has run: goals.json should not say pending")
        row["of"] = results[row["result"]]
        row["measured"] = row["of"][row.get("field", "ratio")]
        if row["goal"] is not None:
            better, goal, measured = row.get("better", "more"), row["goal"], row["measured"]
            if better == "near":
                row["reached"] = goal / max(abs(measured - 1), goal / 100)
            else:
                row["reached"] = goal / measured if better == "less" else measured / goal
            if row["reached"] < 1 and not row.get("missed"):
                raise ValueError(f"{row['result']} missed its goal: goals.json should say why")
    return rows


def figure_of(row: dict[str, Any], number: float) -> str:
    """Write a figure as it is read: a share in percent, a ratio with 'x', others with a unit."""
    if row.get("field", "ratio") == "ratio":
        return f"{number:.2f} x"
    unit = row["of"]["unit"] if row["of"] else row["unit"]
    share = unit in {"top-1", "of the time"} or unit.startswith("of the device")
    return (
        f"{number:.2%}"
        if share
        else f"{number:.3g} {unit}"
        if number < 100
        else f"{number:,.0f} {unit}"
    )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| what | here | its peer | ratio or figure | goal | its limit |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        of = row["of"]
        goal = "" if row["goal"] is None else figure_of(row, row["goal"])
        if of is None:
            lines.append(f"| {row['what']} | not run yet | | | {goal} | {row['limit']} |")
            continue
        own = f"{of['value']:.4g} {of['unit']}"
        peer = of["peer"]
        if of["peer_value"] is not None:
            peer = f"{of['peer_value']:.4g}, {peer}"
        if row.get("better") == "less":
            goal = f"at most {goal}"
        elif row.get("better") == "near":
            goal = f"1, within {row['goal']:.2f}"
        missed = row["reached"] is not None and row["reached"] < 1
        found = figure_of(row, row["measured"])
        lines.append(
            f"| {row['what']} | {own} | {peer} | {found if missed else f'**{found}**'} | {goal} | "
            f"{row['limit']} |"
        )
    lines += ["", "Missed, and why:", ""]
    lines += [
        f"- {row['what']}, {figure_of(row, row['measured'])} of {figure_of(row, row['goal'])}: "
        f"{row['missed']}."
        for row in rows
        if row["reached"] is not None and row["reached"] < 1
    ]
    pending = [row for row in rows if row["of"] is None]
    if pending:
        lines += ["", "Not run yet, so there is no figure:", ""]
    lines += [f"- {row['what']}: {row['pending']}." for row in pending]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how far each goal is reached: a bar to 1 and beyond."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "vitbase"  # the same figures give the same file
    shown = [row for row in rows if row["reached"] is not None][::-1]
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(shown) + 1), layout="constrained")
    reached = [row["reached"] for row in shown]
    colours = ["#2a6f97" if share >= 1 else "#c1666b" for share in reached]
    axes.barh(range(len(shown)), [min(share, 2.5) for share in reached], color=colours, height=0.65)
    axes.axvline(1, color="#444444", linewidth=1)
    axes.set_yticks(range(len(shown)), [row["what"].replace("`", "") for row in shown])
    for number, row in enumerate(shown):
        text = figure_of(row, row["measured"])
        axes.text(min(row["reached"], 2.5) + 0.02, number, text, va="center", fontsize=8)
    axes.set_xlim(0, 2.8)
    axes.set_xlabel("of the goal (1: reached)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into README.md, with the figure")
    args = parser.parse_args()
    rows = read_rows()
    text = table(rows)
    if not args.write:
        print(text)
        return
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    draw(rows, HERE / "summary.svg")


if __name__ == "__main__":
    main()
