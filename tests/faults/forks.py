"""Runs that start at once: each a fork of a process that has loaded torch and done nothing with it.

A proof by hundreds of kills would wait for imports most of the time. A fork is a process of its
own, in a session of its own, with `vitbase`'s command line; only its start is shorter.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faulty import PLAN, SHIM, Plan, install


class Forks:
    """Starts runs, and waits for them."""

    def __init__(self) -> None:
        paths = [str(SHIM), str(SHIM.parent), *filter(None, sys.path)]
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )

    def start(
        self,
        words: Sequence[str],
        out: Path,
        run: Plan | None = None,
        writer: Plan | None = None,
    ) -> int:
        """Start a command. Returns: its process, which leads a group of its own.

        Args:
          out: the file that gets what it says.
          run: what happens in the process itself.
          writer: what happens in the process that writes its checkpoints.
        """
        plans = [plan and dataclasses.asdict(plan) for plan in (run, writer)]
        return int(self._ask({"start": [*words], "out": str(out), "plans": plans}))

    def wait(self, process: int) -> int:
        """Return the exit code of a command, negative for the signal that ended it."""
        return int(self._ask({"wait": process}))

    def close(self) -> None:
        self._server.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    import torch  # noqa: F401

    import vitbase.training.run

    assert vitbase.training.run
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            process = os.fork()
            if process == 0:
                _be(request)
            answer = process
        else:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _be(request: dict[str, Any]) -> None:
    """Be the command that was asked for."""
    os.setsid()
    out = os.open(request["out"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, out, out)):
        os.dup2(descriptor, number)
    code = 1
    try:
        run, writer = (plan and Plan(**plan) for plan in request["plans"])
        if writer:
            os.environ[PLAN] = json.dumps(dataclasses.asdict(writer))
        if run:
            disk, _ = install(run)
            _watch_evaluation(disk)
        from vitbase.cli.main import main

        main(request["start"])
        code = 0
    except KeyboardInterrupt:  # the command line was not there yet
        code = 130
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch_evaluation(disk: Any) -> None:
    """Let every batch of an evaluation be a touch, too."""
    from vitbase.evaluation.run import EachOnce

    add = EachOnce.add

    def adding(self: EachOnce, *args: Any) -> Any:
        disk.touch("evaluate", "before")
        return add(self, *args)

    EachOnce.add = adding


if __name__ == "__main__":
    _serve()
