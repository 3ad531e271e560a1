"""Several ranks of one run, as processes of this machine, started as torchrun starts them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# Children are forked from a process that has torch already, and no threads yet.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["vitbase.training.run", "vitbase.cli.main"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(
    log_dir: Path,
    target: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    servers: int = 1,
) -> list[BaseProcess]:
    """Start `target(*arguments[rank])` on as many ranks as there are arguments.

    What rank r prints goes to `rank-<r>.log`. A target must be importable. With several servers,
    the ranks are told that they are dealt evenly to them.
    """
    on_each = len(arguments) // servers
    log_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank, own in enumerate(arguments):
        variables = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % on_each),
            "WORLD_SIZE": str(len(arguments)),
            "LOCAL_WORLD_SIZE": str(on_each),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        log = log_dir / f"rank-{rank}.log"
        processes.append(start_one(log, target, own, variables))
    return processes


def start_one(
    log: Path,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    variables: dict[str, str] | None = None,
) -> BaseProcess:
    """Start a process that prints to a file; without variables it is alone."""
    arguments = (variables or {"WORLD_SIZE": "1"}, log, target, arguments)
    process = _context.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return process


def wait_for(processes: Sequence[BaseProcess], seconds: float = 120) -> list[int | None]:
    """Wait for processes to end; return their exit codes. One that hangs is killed, code -9."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def train_on(
    folder: Path,
    num_ranks: int,
    recipe: str,
    *,
    servers: int = 1,
    target: Callable[[str, dict[str, Any]], None] | None = None,
    **options: Any,
) -> None:
    """Train on some ranks, by `target` or as usual, and check that all of them end well."""
    options = {"output_dir": str(folder), **options}
    arguments = [(recipe, options)] * num_ranks
    started = start_ranks(folder.parent / "logs", target or train, arguments, servers=servers)
    codes = wait_for(started)
    logs = [path.read_text() for path in sorted((folder.parent / "logs").glob("rank-*.log"))]
    assert codes == [0] * num_ranks, "\n".join(logs)


def train(recipe: str, options: dict[str, Any]) -> None:
    from vitbase.config.config import load_config
    from vitbase.training.run import train

    train(load_config(recipe, **options))


def command(words: list[str]) -> None:
    from vitbase.cli.main import main

    main(words)


def _run(
    variables: dict[str, str], log: Path, target: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    if variables["WORLD_SIZE"] != "1":
        os.environ.update(variables)
    with log.open("w", buffering=1) as file, contextlib.redirect_stdout(file):
        sys.stderr = file
        try:
            target(*arguments)
        except Exception:
            traceback.print_exc(file=file)
            sys.exit(1)
