"""A server's ranks: started, watched, restarted and stopped by torchrun's agent.

What torchrun prints at the end does not hold the rank's own message; here, that is the last line.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed.run as torchrun
from torch.distributed import DistError, Store  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from vitbase import stopping
from vitbase.console import warn
from vitbase.errors import LaunchError
from vitbase.launch.meeting import JsonBackend, Seal, open_file, open_store
from vitbase.launch.watch import ANSWER_SECONDS, Failure, Watch
from vitbase.pulse import HUNG

_SIGNALS = (*stopping.SIGNALS, signal.SIGQUIT)
# How ranks end that were asked to stop: they saved; they did not listen yet; they were asked twice.
_ASKED = {stopping.STOPPED, -signal.SIGTERM, 128 + signal.SIGTERM}
# For ranks that were asked to stop, to write a checkpoint. Whoever asked kills sooner, if at all.
_SAVING_SECONDS = 3600


def describe(rank: int, server: str | None, failure: ProcessFailure) -> Failure:
    """Read what torchrun knows of a rank that failed, on a server if there are several."""
    who = f"rank {rank}" + (f" on {server}" if server else "")
    told = failure.message
    if isinstance(told, Mapping):
        extra = told.get("extraInfo", {})
        moment = float(told.get("time", failure.timestamp))
        if "who" in told:
            return Failure(str(told["who"]), str(told.get("what", "")), moment, is_hang=True)
        mistake, trace = bool(told.get("is_mistake")), str(extra.get("py_callstack", ""))
        return Failure(who, f": {told.get('message', '')}", moment, mistake, trace)
    if failure.exitcode >= 0:
        return Failure(who, f" ended with exit code {failure.exitcode}", failure.timestamp)
    name = failure.signal_name()
    hint = " (often: no memory left)" if name == "SIGKILL" else ""
    moment = float(failure.timestamp)
    if name == "SIGTERM":
        moment = math.inf  # it was stopped because another rank failed, unless it is alone
    elif name != "SIGABRT":
        # Seen up to a second and a half after the fact, while others fail within milliseconds for
        # want of this rank. A rank aborts for want of another, too.
        moment -= 1.5
    return Failure(who, f" was killed by {name}{hint}", moment)


def code_when_stopped(codes: Sequence[int | None], number: int, *, own: bool) -> int:
    """Return the exit code of a launch that was asked to stop.

    Args:
      codes: of the ranks; none if they had not begun, None of one that goes on.
      number: of the signal.
      own: whether the ranks run this package's program, and not one that a person has written.
    """
    ended = {*codes}
    # Our own that do not listen yet, or no longer, had nothing to save. torchrun hands them the
    # signal that it was sent.
    deaf = {-signal for signal in stopping.SIGNALS} if own else set()
    # One rank is done when all are: the signal came too late to stop anything.
    if own and 0 in ended and ended <= {0, stopping.STOPPED, *deaf}:
        return 0
    # Who stops has saved with the others, or no one had anything to save: those that miss it then
    # fail, or abort, and have lost nothing.
    missing = {1, -signal.SIGABRT} if own and stopping.STOPPED in ended else set()
    if (ended or own) and ended <= {stopping.STOPPED, *deaf, *missing}:
        return stopping.STOPPED
    return 128 + number


def run_agent(
    words: Sequence[str],
    addresses: Sequence[str],
    server: int,
    timeout: int,
    *,
    folder: Path,
    secret: bytes | None = None,
) -> int:
    """Run torchrun's agent in this process until this server's ranks have ended.

    Args:
      words: torchrun's arguments; the rendezvous is c10d, with is_host given.
      addresses: of the servers, for messages; they meet at the first.
      server: which of them this is.
      timeout: seconds that a server waits for the others.
      folder: of this user alone, for logs, and where the ranks of a single server meet.
      secret: what the servers share, to know each other by.
    Returns: 0 when all ranks are done, `stopping.STOPPED` when they were asked to stop and did,
      128 + the signal's number when they had to be ended.
    Raises: LaunchError naming the rank or the server at fault.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_signals())
        agent: _Agent | None = None
        watch: Watch | None = None
        try:
            config, entry, arguments = torchrun.config_from_args(
                torchrun.parse_args([f"--log_dir={folder}", *words])
            )
            parameters = RendezvousParameters(
                backend=config.rdzv_backend,
                endpoint=config.rdzv_endpoint,
                run_id=config.run_id,
                min_nodes=config.min_nodes,
                max_nodes=config.max_nodes,
                local_addr=config.local_addr,
                **config.rdzv_configs,
            )
            seal = Seal(secret)
            store: Store
            if len(addresses) == 1:
                store = open_file(folder)
            else:
                _, port = parse_rendezvous_endpoint(config.rdzv_endpoint, 0)
                store = _open_store(addresses[0], port, hosts=server == 0, timeout=timeout)
            backend = JsonBackend(store, config.run_id, seal)
            handler = create_handler(store, backend, parameters)
            if len(addresses) > 1:
                watch = Watch(addresses[0], port, addresses, server, seal)
                stack.callback(watch.stop)
                watch.start(config.run_id)
            stack.callback(handler.shutdown)
            spec = WorkerSpec(
                role=config.role,
                local_world_size=config.nproc_per_node,
                entrypoint=entry,
                args=tuple(arguments),
                rdzv_handler=handler,
                max_restarts=config.max_restarts,
                monitor_interval=config.monitor_interval,
            )
            agent = _Agent(spec, config.logs_specs, addresses[server], watch)
            result = agent.run()
            if not result.is_failed():
                return 0
            if agent.was_asked_to_stop:
                return stopping.STOPPED
            _raise_first(agent.failures if watch is None else watch.part(agent.failures))
        except SignalException as stopped:
            name = signal.Signals(stopped.sigval).name
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # a third one would leave ranks behind
            codes = agent.codes() if agent is not None else []
            code = code_when_stopped(codes, stopped.sigval, own="vitbase" in words)
            if agent is not None:
                agent.kill()
            if watch is not None:
                here = Failure(
                    f"server {addresses[server]}", f" was stopped by {name}", time.time()
                )
                watch.part([here])
            if code:
                warn(f"\nvitbase: stopped by {name}, and all ranks of this server")
            return code
        except (RendezvousError, DistError, ConnectionError) as error:
            if watch is not None:
                watch.explain(error, timeout)
            raise LaunchError(f"The servers could not meet: {error}") from error


def _ignored_signals() -> set[signal.Signals]:
    return {number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN}


def _open_store(address: str, port: int, *, hosts: bool, timeout: int) -> Store:
    """Create the store, or connect to it. Raises: LaunchError if it is no store that answers."""
    made: list[Store] = []
    failed: list[Exception] = []

    def create() -> None:
        try:
            made.append(open_store(address, port, hosts=hosts, timeout=timeout))
        except Exception as error:
            failed.append(error)

    # In a thread, since torch waits without end, deaf to signals, for the first answer of
    # something that listens and says nothing.
    thread = threading.Thread(target=create, name="vitbase-meet", daemon=True)
    thread.start()
    thread.join(timeout=ANSWER_SECONDS)
    if failed:
        raise failed[0]
    if not made:
        raise LaunchError(
            f"What listens at {address}:{port} does not answer as the first server of a launch"
            f" does. Is the address the right one, and the port the same on every server?"
        )
    return made[0]


def _raise_first(failures: Sequence[Failure]) -> NoReturn:
    """Raise the failure that caused the others, after a line for each of these."""
    first = min(failures, key=lambda failure: failure.order)
    for failure in failures:
        # An infinite time: it was stopped because of the first.
        if failure.message != first.message and math.isfinite(failure.time):
            text = failure.message.splitlines()[0]
            warn(f"vitbase: also, {failure.who}{text}")
    first.raise_()


class _Agent(LocalElasticAgent):
    """torchrun's agent, which also remembers why ranks failed, and heeds the other servers."""

    def __init__(self, spec: WorkerSpec, logs_specs: Any, server: str, watch: Watch | None) -> None:
        super().__init__(spec, logs_specs)
        self.failures: list[Failure] = []
        self._server = server if watch is not None else None
        self._watch = watch
        self._failed_here = False
        self.was_asked_to_stop = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._watch is not None and self._watch.verdict is not None:
            self._watch.verdict.raise_()
        if HUNG in self.codes():
            # The others would wait for it, and one that is stopped is deaf to any other signal.
            self.kill()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in {WorkerState.UNHEALTHY, WorkerState.FAILED}:
            codes = [failure.exitcode for failure in result.failures.values()]
            # Asked otherwise than through this process; one that it told to end because another has
            # failed may end so, too.
            if stopping.STOPPED in codes and {*codes} <= _ASKED:
                self._remaining_restarts, self.was_asked_to_stop = 0, True
            self._failed_here = True
            self.failures = [
                describe(rank, self._server, failure) for rank, failure in result.failures.items()
            ] or [Failure("a rank of this server", " hangs in the kernel", time.time())]
            # Of a hang all ranks tell that notice it; those that were ended for it have no cause.
            hangs = sorted(self.failures, key=lambda failure: -failure.order[1])
            told = {failure.who: failure for failure in hangs if failure.is_hang}
            self.failures = [*told.values()] or self.failures
            if any(failure.is_mistake for failure in self.failures):
                self._remaining_restarts = 0  # it would only be made again
        return result

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        ignored = _ignored_signals()
        started: dict[int, Any] = super()._start_workers(worker_group)
        for number in ignored:  # torchrun has just set its own handler, which would defy nohup
            signal.signal(number, signal.SIG_IGN)
        return started

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        reason = "another server restarts its ranks"
        if self._failed_here:
            first = min(self.failures, key=lambda failure: failure.order)
            left = self._remaining_restarts
            reason = f"{first.who}{first.message} ({left} more restarts after this one)"
        self._failed_here = False
        warn(f"vitbase: restarting the ranks of this server: {reason}")
        super()._restart_workers(worker_group)

    def _exit_barrier(self) -> None:
        # torchrun's own waits for 300 s at most, deaf to signals and to the others' failures.
        if self._watch is not None:
            self._watch.await_all()

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        if isinstance(sys.exception(), SignalException):  # not a failure: ranks save first
            timeout = _SAVING_SECONDS
        super()._shutdown(death_sig, timeout)

    def codes(self) -> list[int | None]:
        """Return the exit codes of all ranks; None of those that run."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {}).values()
        return [handler.proc.poll() for handler in handlers]

    def kill(self) -> None:
        """End ranks that ignored a signal; those that are gone are left alone."""
        super()._shutdown(signal.SIGKILL)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torchrun's own messages back: what a user needs of them is said here, in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn signals into exceptions from the start, as torchrun does once ranks run."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise SignalException("stopped", signal.Signals(number))

    if threading.current_thread() is not threading.main_thread():
        yield  # torchrun does without, too
        return
    ignored = _ignored_signals()  # by nohup, and by shells for what runs in the background
    before = {number: signal.signal(number, stop) for number in _SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
