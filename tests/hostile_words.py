"""Commands that a list in a file names, each run as the program would, in one process.

    python tests/hostile_words.py FILE

The file is JSON: lists of words. What Python would do with an error that comes out of a command is
done here, so that the next command has its turn.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from vitbase.cli.main import main
from vitbase.errors import VitbaseError

MARK = "-----"
"""Begins the line before what a command says."""


def run(number: int, words: list[str]) -> None:
    sys.argv = ["vitbase", *words]
    sys.stdout.flush()
    sys.stderr.write(f"{MARK} {number}\n")
    sys.stderr.flush()
    code: object = 0
    try:
        main()
    except SystemExit as stopped:
        code = stopped.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 2 if isinstance(error, VitbaseError) else "crash"
    sys.stdout.flush()
    sys.stderr.write(f"{MARK} {number} ended: {code}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    os.environ.pop("RANK", None)
    for place, command in enumerate(json.loads(Path(sys.argv[1]).read_text("utf-8"))):
        run(place, command)
