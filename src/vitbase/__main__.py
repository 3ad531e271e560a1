"""The command `vitbase`, also as `python -m vitbase`: it listens for signals before it loads."""

from __future__ import annotations

import sys

from vitbase.console import warn
from vitbase.stopping import STOPPED, Stopped, answering


def main() -> None:
    """Load the command line, and run it; asked to stop meanwhile, end as it would."""
    try:
        with answering():
            from vitbase.cli.main import main as run
    except Stopped as stopped:
        warn(f"vitbase: {stopped}")
        sys.exit(STOPPED)
    run()


if __name__ == "__main__":
    main()
