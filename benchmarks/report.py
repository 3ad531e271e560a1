"""How long a report takes, and how large it is: runs of 160 epochs, of several numbers of classes.

    python benchmarks/report.py

The runs are made up (`tests/made_reports.py`); imports are not counted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import matplotlib.backends.backend_svg  # noqa: F401 (loaded before the clock runs)
from made_reports import make_run, names_of

from vitbase.evaluation.report.page import write_report


def main() -> None:
    print("| classes | runs | seconds | of a core | MB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for classes in (10, 100, 1000):
            runs = [
                make_run(
                    folder / f"{classes}-{number}",
                    names_of(classes),
                    epochs=160,
                    steps=5004,
                    every=50,
                )
                for number in range(2)
            ]
            for count in (1, 2):
                out = folder / f"{classes}-{count}.html"
                started, computed = time.perf_counter(), time.process_time()
                write_report(runs[:count], out)
                seconds = time.perf_counter() - started
                computed = time.process_time() - computed
                size = out.stat().st_size / 1e6
                print(f"| {classes} | {count} | {seconds:.1f} | {computed:.1f} | {size:.2f} |")


if __name__ == "__main__":
    main()
