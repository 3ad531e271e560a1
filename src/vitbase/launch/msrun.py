"""Starts ranks of engine mindspore: a rank table, or this machine's devices -> msrun.

What torchrun is to torch, msrun is to MindSpore: on each server it starts a process for each
device, and on the first one a scheduler, by which they find each other. It writes a log for each
process and says little itself; here the first rank's log is shown while it grows, and what ended
the others becomes one clear message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from vitbase.console import say, warn
from vitbase.errors import LaunchError
from vitbase.launch.plan import DEVICE_IDS, Plan
from vitbase.rendezvous import bound_socket
from vitbase.runtime import available_cores

_MODULE = "mindspore.parallel.cluster.run"
_MISTAKE = "vitbase: error: "
_LOST = ("lost another rank", "did not find the others", "stands still")
_NOISE = re.compile(r"\[(INFO|WARNING)\] [A-Z_]+\(")  # of MindSpore itself
_ENDED = re.compile(r"Worker process \d+ exit with exception\. Error code: (-?\d+)")
_PATIENCE = 10.0  # seconds for the scheduler to end, once a rank has failed
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def msrun_words(plan: Plan, log_dir: str) -> list[str]:
    """Return the arguments of msrun on this server.

    Ranks follow the table: msrun numbers them from `node_rank` x `local_worker_num`.
    """
    return [
        f"--worker_num={len(plan.addresses) * plan.num_devices}",
        f"--local_worker_num={plan.num_devices}",
        f"--master_addr={plan.addresses[0]}",
        f"--master_port={plan.port}",
        f"--node_rank={plan.server}",
        f"--cluster_time_out={plan.timeout}",
        f"--log_dir={log_dir}",
        "--join=True",
        "python",
        *plan.words,
    ]


def msrun_environment(plan: Plan) -> dict[str, str]:
    """Return the variables that the ranks need beside msrun's own."""
    cores = str(max(1, available_cores() // plan.num_devices))
    variables = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "LOCAL_WORLD_SIZE": str(plan.num_devices),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", cores),
        "PYTHONUNBUFFERED": "1",
    }
    if plan.device_ids is not None:
        variables[DEVICE_IDS] = ",".join(map(str, plan.device_ids))
    return variables


def msrun_command(plan: Plan) -> str:
    """Return the command to start this server by hand, in a shell."""
    variables = {k: v for k, v in msrun_environment(plan).items() if k != "PATH"}
    words = [sys.executable, "-m", _MODULE, *msrun_words(plan, "msrun_logs")]
    named = [f"{name}={value}" for name, value in variables.items()]
    return f"env {' '.join(map(shlex.quote, [*named, *words]))}"


def run_msrun(plan: Plan) -> int:
    """Start this server's ranks and wait for their end, again after a failure that may pass.

    Returns: 0 when all ranks are done, 128 + the signal's number when stopped by one.
    Raises: LaunchError with the message of the rank that failed, or naming the port.
    """
    if plan.server > 0:
        say(
            f"Server {plan.server + 1} of {len(plan.addresses)}, {plan.num_devices} ranks; the "
            f"log and the checkpoints are on {plan.addresses[0]}."
        )
    left = plan.max_restarts
    while True:
        with tempfile.TemporaryDirectory(prefix="vitbase-msrun-") as folder:
            try:
                return _run_once(_with_port(plan), Path(folder))
            except _RankFailedError as failed:
                if failed.is_mistake or left == 0:
                    raise LaunchError(*str(failed).split("\n")) from None
                left -= 1
                warn(f"vitbase: restarting the ranks of this server: {failed} ({left} more)")


class _RankFailedError(Exception):
    """A rank has ended; a mistake of the user's would only be made again."""

    def __init__(self, message: str, *, is_mistake: bool) -> None:
        super().__init__(message)
        self.is_mistake = is_mistake


class _StoppedError(Exception):
    """A signal asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _with_port(plan: Plan) -> Plan:
    """Return the plan with a port on which the scheduler can listen.

    Raises: LaunchError if the one that was given is in use.
    """
    if plan.server > 0:
        return plan
    # Of a single server nobody else needs to know the port.
    try:
        with bound_socket(plan.addresses[0], 0 if plan.is_alone else plan.port) as probe:
            return dataclasses.replace(plan, port=int(probe.getsockname()[1]))
    except OSError as error:
        raise LaunchError(
            f"msrun's scheduler cannot listen at {plan.addresses[0]} port {plan.port}: "
            f"{error.strerror}. Give another --port on every server, or end what listens there."
        ) from None


def _run_once(plan: Plan, folder: Path) -> int:
    words = [sys.executable, "-m", _MODULE, *msrun_words(plan, str(folder))]
    own = folder / "msrun.log"
    with own.open("w") as log, _signals():
        # In a session of its own, so that it and its scheduler can be ended together.
        msrun = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **msrun_environment(plan)},
            start_new_session=True,
        )
        try:
            _follow(msrun, folder / "worker_0.log" if plan.server == 0 else None, own)
        except _StoppedError as stopped:
            name = signal.Signals(stopped.number).name
            _end(msrun)
            warn(f"\nvitbase: stopped by {name}, and all ranks of this server")
            return 128 + stopped.number
        finally:
            if msrun.poll() is None:
                _end(msrun)
    said = own.read_text(errors="replace")
    if msrun.returncode != 0 or _ENDED.search(said):
        _raise_first(folder, said)
    return 0


def _follow(msrun: subprocess.Popen[bytes], shown: Path | None, own: Path) -> None:
    """Show the first rank's log until msrun ends, or should have."""
    with contextlib.ExitStack() as stack:
        lines: Iterator[str] | None = None
        failed_at: float | None = None
        while True:
            ended = msrun.poll() is not None
            if lines is None and shown is not None and shown.exists():
                lines = stack.enter_context(shown.open(errors="replace"))
            for line in lines or ():
                if not _NOISE.match(line) and not line.startswith(_MISTAKE):
                    say(line.rstrip("\n"))
            if ended:
                return
            if failed_at is None and _ENDED.search(own.read_text(errors="replace")):
                failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _PATIENCE:
                return  # its scheduler would wait for the rank for minutes
            time.sleep(0.2)


def _end(msrun: subprocess.Popen[bytes]) -> None:
    """End msrun, which ends its ranks when it is interrupted, and its scheduler."""
    with contextlib.suppress(ProcessLookupError):
        msrun.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            msrun.wait(timeout=_PATIENCE)
        os.killpg(msrun.pid, signal.SIGKILL)
    msrun.wait()


def _raise_first(folder: Path, own: str) -> NoReturn:
    """Raise what the ranks say of their end; one that lost another is not the first."""
    told = []
    for path in sorted(folder.glob("worker_*.log")):
        before, mark, text = path.read_text(errors="replace").rpartition(_MISTAKE)
        if mark and (not before or before.endswith("\n")):
            lines = [line for line in text.splitlines() if line and not _NOISE.match(line)]
            told.append((path.stem.removeprefix("worker_"), "\n".join(lines)))
    told.sort(key=lambda item: any(word in item[1] for word in _LOST))
    if told:
        rank, text = told[0]
        lost = any(word in text for word in _LOST)
        raise _RankFailedError(f"Rank {rank}: {text}", is_mistake=not lost)
    code = _ENDED.search(own)
    if code is not None and int(code[1]) < 0:
        name = signal.Signals(-int(code[1])).name
        hint = " (often: no memory left)" if name == "SIGKILL" else ""
        raise _RankFailedError(f"A rank was killed by {name}{hint}.", is_mistake=False)
    tails = [_tail(path) for path in sorted(folder.glob("*.log"))]
    raise _RankFailedError("msrun ended with an error:\n" + "\n".join(tails), is_mistake=False)


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join([f"[{path.name}]", *lines[-8:]])


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn signals into exceptions, but those that whoever started us has switched off."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise _StoppedError(number)

    ignored = {number for number in _STOPS if signal.getsignal(number) is signal.SIG_IGN}
    before = {number: signal.signal(number, stop) for number in _STOPS if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
