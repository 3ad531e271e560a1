"""Commands as a user gives them, run in the test's own process, and what another one needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vitbase.cli.main import main

ROOT = Path(__file__).parents[1]


def environment_of_commands(**more: str) -> dict[str, str]:
    """Return the variables of a process in which `vitbase` is the one that is tested."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHON": sys.executable, **more}


def run_command(capture: Any, *words: object) -> tuple[int, str, str]:
    """Run `vitbase` with these words; return its exit code, output and errors.

    Args:
      capture: pytest's capsys, or capfd where other processes write too.
    """
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    captured = capture.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err
