"""The doctor's report for people: a table in a terminal, plain lines in a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vitbase.console import printable, say
from vitbase.curation.checking.report import DataReport, Finding, SplitReport

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = 5
"""Places that are shown for a finding; a report in JSON has more of them."""

_EXTREMES = 3  # of the largest and smallest classes


def show_report(report: DataReport) -> None:
    """Write the report to standard output: in colours to a terminal, plain to a file or pipe."""
    if sys.stdout is None:  # closed by whoever started us: nobody reads
        return
    if not sys.stdout.isatty():
        for line in plain_lines(report):
            say(printable(line))
        return
    from rich.console import Console

    print_table(report, Console())


def plain_lines(report: DataReport) -> Iterator[str]:
    """Yield the report as lines of text, paths uncut."""
    yield f"layout: {report.layout}"
    yield ""
    rows = [*_overview(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *values in rows:
        cells = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        yield f"  {name:<{widths[0]}}  " + "  ".join(cells)
    yield ""
    for split in report.splits:
        for line in (*_class_lines(split), *split.notes):
            yield f"  {split.name}: {line}"
    yield ""
    for split in report.splits:
        for found in split.ordered():
            yield f"  {'ERROR' if found.error else 'note '} {_headline(split, found)}"
            yield from (f"          {line}" for line in _place_lines(found))
    if not any(split.counts for split in report.splits):
        yield "  no faults found"
    yield ""
    yield report.verdict


def print_table(report: DataReport, console: Console) -> None:
    """Print the report to a terminal."""
    from rich.box import ROUNDED, SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    overview = Table(
        box=SIMPLE_HEAD,
        title=Text(printable(f"layout: {report.layout}"), "bold"),
        title_justify="left",
    )
    first, *rows = _overview(report)
    overview.add_column(first[0])
    for name in first[1:]:
        overview.add_column(name, justify="right")
    for row in rows:
        overview.add_row(*(Text(printable(cell)) for cell in row))
    console.print(overview)
    for split in report.splits:
        for line in (*_class_lines(split), *split.notes):
            console.print(Text.assemble((f"{split.name}: ", "dim"), printable(line)))
    if any(split.counts for split in report.splits):
        findings = Table(box=ROUNDED, show_lines=True, expand=True)
        for name in ("", "found", "where"):
            findings.add_column(name, overflow="fold")
        for split in report.splits:
            for found in split.ordered():
                mark = Text("ERROR", "bold red") if found.error else Text("note", "yellow")
                where = Text("\n".join(map(printable, _place_lines(found))), "dim")
                findings.add_row(mark, Text(printable(_headline(split, found))), where)
        console.print(findings)
    else:
        console.print(Text("no faults found", "green"))
    console.print(Text(printable(report.verdict), "bold red" if report.wrong else "bold green"))


def _overview(report: DataReport) -> Iterator[tuple[str, ...]]:
    splits = report.splits
    yield ("", *(split.name for split in splits))
    yield ("images", *(f"{split.images:,}" for split in splits))
    yield ("classes", *(f"{len(split.class_names):,}" for split in splits))
    yield ("images in a class", *map(_spread, splits))
    yield ("formats", *map(_formats, splits))
    yield ("typical height x width", *map(_pixels, splits))
    yield ("largest and smallest", *map(_extent, splits))
    yield ("bytes", *map(_bytes, splits))


def _spread(split: SplitReport) -> str:
    counts = split.class_counts
    return f"{min(counts):,} to {max(counts):,}" if min(counts) < max(counts) else f"{counts[0]:,}"


def _formats(split: SplitReport) -> str:
    if not split.formats:
        return "decoded pixels" if split.digests.any() else "none readable"
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(split.formats.items()))


def _pixels(split: SplitReport) -> str:
    known = split.sizes[split.sizes[:, 0] > 0]
    if not len(known):
        return "unknown"
    height, width = np.median(known[:, :2], 0).astype(int).tolist()
    return f"{height} x {width}"


def _extent(split: SplitReport) -> str:
    """Return the sizes of the images with most and fewest pixels."""
    known = split.sizes[split.sizes[:, 0] > 0]
    if not len(known):
        return "unknown"
    pixels = known[:, 0] * known[:, 1]
    largest, smallest = known[pixels.argmax()].tolist(), known[pixels.argmin()].tolist()
    return f"{largest[0]} x {largest[1]}, {smallest[0]} x {smallest[1]}"


def _bytes(split: SplitReport) -> str:
    total = int(split.sizes[:, 2].sum())
    each = total / max(1, int(np.count_nonzero(split.sizes[:, 2])))
    return f"{_in_units(total)}, {_in_units(each)} an image"


def _in_units(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _class_lines(split: SplitReport) -> Iterator[str]:
    """Yield the classes and their counts: all of a few, the extremes of many."""
    pairs = sorted(
        zip(split.class_counts, split.class_names, strict=True), key=lambda pair: -pair[0]
    )
    if len(pairs) <= 4 * _EXTREMES:
        yield ", ".join(f"{name} {count:,}" for count, name in pairs)
        return
    if pairs[0][0] == pairs[-1][0]:
        return  # the overview says it
    for what, part in (("most", pairs[:_EXTREMES]), ("fewest", pairs[-_EXTREMES:])):
        yield f"{what} images: " + ", ".join(f"{name} {count:,}" for count, name in part)


def _headline(split: SplitReport, found: Finding) -> str:
    return f"{split.name}: {found.times:,} {found.kind} ({found.outcome})"


def _place_lines(found: Finding) -> Iterator[str]:
    for place in found.places[:EXAMPLES]:
        yield f"{place.path}: {place.detail}" if place.detail else place.path
    if found.times > EXAMPLES:
        yield f"… and {found.times - EXAMPLES:,} more"
