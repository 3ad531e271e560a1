"""What was doubted, as tables: one row an image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vitbase.curation.doubting.doubt import Doubts, Item

Splits = Mapping[str, str]
"""Of each file, the split of the data set that its images are in, if it is known."""

_COLUMNS = {
    "labels": ("id", "split", "label", "likely", "p_label", "p_likely", "margin"),
    "duplicates": ("group", "id", "split", "file", "label", "distance", "leave_out"),
    "outliers": ("id", "split", "file", "label", "prediction", "distance", "times_median"),
    "leave_out": ("id", "split", "reason"),
}


def label_rows(doubts: Doubts, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield the images whose label is doubted, the worst first."""
    found, given = doubts.labels, doubts.predictions
    if found is None:
        return
    values = (found.suspects, found.likely, found.p_likely, found.margins)
    for index, likely, p_likely, margin in zip(*(each.tolist() for each in values), strict=True):
        yield {
            "id": given.ids[index],
            "split": splits.get("predictions", ""),
            "label": given.class_name(int(given.labels[index])),
            "likely": given.class_name(likely),
            "p_label": _short(float(given.p_label[index])),
            "p_likely": _short(p_likely),
            "margin": _short(margin),
        }


def duplicate_rows(doubts: Doubts, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield the images of groups of near-duplicates, group after group."""
    for number, group in enumerate(doubts.groups or (), 1):
        gone = doubts.to_leave_out(group)
        for item, distance in group:
            yield {
                "group": number,
                **_image(doubts, item, splits),
                "distance": _short(distance),
                "leave_out": "yes" if item in gone else "no",
            }


def outlier_rows(doubts: Doubts, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield the images that are far from all others, the farthest first."""
    found = doubts.outliers
    if found is None:
        return
    for place in found.far.tolist():
        item = doubts.items[place]
        given, distance = doubts.of(item), float(found.distances[place])
        yield {
            **_image(doubts, item, splits),
            "prediction": given.class_name(int(given.predictions[item.index])),
            "distance": _short(distance),
            "times_median": _short(distance / found.median) if found.median else "",
        }


def leave_out_rows(doubts: Doubts, splits: Splits) -> Iterator[dict[str, Any]]:
    """Yield the images that a data set may be better without, each once.

    These are doubted labels, and near-duplicates but one of each group. An image that is far from
    all others is rare, not wrong: it is for a person to judge.
    """
    reasons: dict[Item, str] = {}
    for group in doubts.groups or ():
        reasons |= doubts.to_leave_out(group)
    if doubts.labels is not None:
        given = doubts.predictions
        pairs = zip(doubts.labels.suspects.tolist(), doubts.labels.likely.tolist(), strict=True)
        for index, likely in pairs:
            label = given.class_name(int(given.labels[index]))
            reason = f"labelled {label}, likely {given.class_name(likely)}"
            reasons[Item("predictions", index)] = reason
    for item, reason in reasons.items():
        name = doubts.of(item).ids[item.index]
        yield {"id": name, "split": splits.get(item.file, ""), "reason": reason}


def report_rows(doubts: Doubts) -> Iterator[dict[str, Any]]:
    """Yield what the page of `vitbase report` lists, the worst of each kind first."""
    for row in label_rows(doubts, {}):
        yield _doubt("label likely wrong", row, row["likely"], row["p_likely"])
    for row in duplicate_rows(doubts, {}):
        yield _doubt(f"near-duplicate, group {row['group']}", row, "", row["distance"])
    for row in outlier_rows(doubts, {}):
        yield _doubt("far from all others", row, row["prediction"], row["distance"])


def _doubt(kind: str, row: Mapping[str, Any], prediction: str, score: float) -> dict[str, Any]:
    known = {"id": row["id"], "label": row["label"]}
    return {"kind": kind, **known, "prediction": prediction, "score": score}


def write_table(name: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    table = csv.DictWriter(text, _COLUMNS[name])
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _image(doubts: Doubts, item: Item, splits: Splits) -> dict[str, Any]:
    given = doubts.of(item)
    return {
        "id": given.ids[item.index],
        "split": splits.get(item.file, ""),
        "file": item.file,
        "label": given.class_name(int(given.labels[item.index])),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
