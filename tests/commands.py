"""Commands as a user gives them, run in the test's own process."""

from __future__ import annotations

from typing import Any

from vitbase.cli.main import main


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
