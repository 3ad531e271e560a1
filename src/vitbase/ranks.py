"""A server's ranks: started, watched, restarted and stopped by torchrun's agent.

torchrun alone says nothing to the other servers when a rank has failed for good, so they wait for
it until their own time-outs; and what it prints at the end does not hold the rank's own message.
Both are added here, through the store by which the servers meet.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch.distributed.run as torchrun
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]
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
from torch.distributed.elastic.rendezvous.api import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from vitbase import __version__
from vitbase.errors import LaunchError

_BEAT_SECONDS = 1.0
# Long enough for a server that swaps or a switch that restarts, within the promised minute.
_SILENCE_SECONDS = 40.0
# Until every other server has heard of a failure: a few beats.
_PARTING_SECONDS = 3.0
# For the others to end their ranks (torchrun kills them after 30 s) before the store goes.
_FAREWELL_SECONDS = 35.0
# For a server that listens already to say its first word.
_ANSWER_SECONDS = 10.0
_ROOM = "vitbase"
_SILENT = f"{_ROOM}/silent"
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@dataclasses.dataclass(frozen=True)
class Failure:
    """The end of a rank or a server before its time.

    The message continues what `who` begins: ": out of memory", " was killed by SIGSEGV".
    """

    who: str
    message: str
    time: float
    is_mistake: bool = False
    trace: str = ""

    def raise_(self) -> NoReturn:
        error = LaunchError(f"{self.who}{self.message}")
        if self.trace:
            error.add_note(self.trace)  # shown by --debug
        raise error


def describe(rank: int, server: str | None, failure: ProcessFailure) -> Failure:
    """Read what torchrun knows of a rank that failed, on a server if there are several."""
    who = f"rank {rank}" + (f" on {server}" if server else "")
    told = failure.message
    if isinstance(told, Mapping):
        extra = told.get("extraInfo", {})
        moment = float(told.get("time", failure.timestamp))
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


def run_agent(words: Sequence[str], addresses: Sequence[str], server: int, timeout: int) -> int:
    """Run torchrun's agent in this process until this server's ranks have ended.

    Args:
      words: torchrun's arguments; the rendezvous is c10d, with is_host given.
      addresses: of the servers, for messages; they meet at the first.
      server: which of them this is.
      timeout: seconds that a server waits for the others.
    Returns: 0 when all ranks are done, 128 + the signal's number when stopped by one.
    Raises: LaunchError naming the rank or the server at fault.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vitbase-ranks-"))
        stack.enter_context(_signals())
        agent: _Agent | None = None
        watch: _Watch | None = None
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
            backend, store = _create_backend(parameters)
            handler = create_handler(store, backend, parameters)
            if len(addresses) > 1:
                host, port = parse_rendezvous_endpoint(config.rdzv_endpoint, 0)
                watch = _Watch(host, port, addresses, server)
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
            _raise_first(agent.failures if watch is None else watch.part(agent.failures))
        except SignalException as stopped:
            name = signal.Signals(stopped.sigval).name
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # a third one would leave ranks behind
            if agent is not None:
                agent.kill()
            if watch is not None:
                here = Failure(
                    f"server {addresses[server]}", f" was stopped by {name}", time.time()
                )
                watch.part([here])
            sys.stderr.write(f"\nvitbase: stopped by {name}, and all ranks of this server\n")
            return 128 + int(stopped.sigval)
        except (RendezvousError, DistError, ConnectionError) as error:
            if watch is not None:
                watch.explain(error, timeout)
            raise LaunchError(f"The servers could not meet: {error}") from error


def _ignored_signals() -> set[signal.Signals]:
    return {number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_IGN}


def _create_backend(parameters: RendezvousParameters) -> tuple[Any, Any]:
    """Create the store, or connect to it. Raises: LaunchError if it is no store that answers."""
    made: list[tuple[Any, Any]] = []
    failed: list[Exception] = []

    def create() -> None:
        try:
            made.append(create_backend(parameters))
        except Exception as error:
            failed.append(error)

    # In a thread, since torch waits without end, deaf to signals, for the first answer of
    # something that listens and says nothing.
    thread = threading.Thread(target=create, name="vitbase-meet", daemon=True)
    thread.start()
    thread.join(timeout=_ANSWER_SECONDS)
    if failed:
        raise failed[0]
    if not made:
        raise LaunchError(
            f"What listens at {parameters.endpoint} does not answer as the first server of a launch"
            f" does. Is the address the right one, and the port the same on every server?"
        )
    return made[0]


def _raise_first(failures: Sequence[Failure]) -> NoReturn:
    """Raise the failure that caused the others, after a line for each of these."""
    first = min(failures, key=lambda failure: failure.time)
    for failure in failures:
        # An infinite time: it was stopped because of the first.
        if failure.message != first.message and math.isfinite(failure.time):
            text = failure.message.splitlines()[0]
            sys.stderr.write(f"vitbase: also, {failure.who}{text}\n")
    first.raise_()


class _Agent(LocalElasticAgent):
    """torchrun's agent, which also remembers why ranks failed, and heeds the other servers."""

    def __init__(
        self, spec: WorkerSpec, logs_specs: Any, server: str, watch: _Watch | None
    ) -> None:
        super().__init__(spec, logs_specs)
        self.failures: list[Failure] = []
        self._server = server if watch is not None else None
        self._watch = watch
        self._failed_here = False

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self._watch is not None and self._watch.verdict is not None:
            self._watch.verdict.raise_()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state in {WorkerState.UNHEALTHY, WorkerState.FAILED}:
            self._failed_here = True
            self.failures = [
                describe(rank, self._server, failure) for rank, failure in result.failures.items()
            ] or [Failure("a rank of this server", " hangs in the kernel", time.time())]
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
            first = min(self.failures, key=lambda failure: failure.time)
            left = self._remaining_restarts
            reason = f"{first.who}{first.message} ({left} more restarts after this one)"
        self._failed_here = False
        sys.stderr.write(f"vitbase: restarting the ranks of this server: {reason}\n")
        super()._restart_workers(worker_group)

    def _exit_barrier(self) -> None:
        # torchrun's own waits for 300 s at most, deaf to signals and to the others' failures.
        if self._watch is not None:
            self._watch.await_all()

    def kill(self) -> None:
        """End ranks that ignored a signal; those that are gone are left alone."""
        self._shutdown(signal.SIGKILL)


class _Watch:
    """Tells the other servers that this one lives or why it ended, and learns the same of them.

    Each server counts up a number of its own in the store. The first server watches that all
    numbers move; the others notice if the store, which is on the first, is gone.
    """

    def __init__(self, host: str, port: int, addresses: Sequence[str], server: int) -> None:
        self.verdict: Failure | None = None
        self._addresses, self._server = addresses, server
        self._silent: set[int] = set()
        # A connection of its own: the agent's may be in use for minutes, waiting for others.
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitbase-watch", daemon=True)

    def start(self, run_id: str) -> None:
        """Join the servers. Raises: LaunchError if another has another table or version."""
        mine = f"vitbase {__version__}, {run_id}"
        key = f"{_ROOM}/start"
        if self._server == 0:
            self._store.set(key, mine)
        else:
            # get would wait minutes for a store that is another program's, deaf to signals.
            deadline = time.monotonic() + _ANSWER_SECONDS
            while not self._store.check([key]) and time.monotonic() < deadline:
                time.sleep(0.05)
            known = self._store.check([key])
            first = self._store.get(key).decode() if known else "not `vitbase launch`"
            if first != mine:
                raise LaunchError(
                    f"This server ({mine}) and the first ({first}) do not fit: give both the same "
                    f"rank table and the same version of vitbase."
                )
        self._store.add(self._beat(self._server), 1)
        self._thread.start()

    def stop(self) -> None:
        """Leave: no failure, from here on. The first server, which has the store, leaves last."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        with contextlib.suppress(DistError, RuntimeError):
            self._store.add(self._done(self._server), 1)
            others = set(range(len(self._addresses))) - self._silent
            came = [i for i in others if self._store.add(self._beat(i), 0)]
            while self._server == 0 and time.monotonic() < deadline:
                if self._store.check([self._done(i) for i in came]):
                    break
                time.sleep(0.1)

    def await_all(self) -> None:
        """Wait until the ranks of every server are done. Raises: LaunchError if some fail."""
        self._store.set(self._finished(self._server), "")
        everyone = [self._finished(i) for i in range(len(self._addresses))]
        while not self._store.check(everyone):
            if self.verdict is not None:
                self.verdict.raise_()
            time.sleep(0.1)

    def part(self, failures: Sequence[Failure]) -> list[Failure]:
        """Tell the others why this server ends; return its failures and theirs."""
        with contextlib.suppress(DistError, RuntimeError):
            self._tell(f"{_ROOM}/failure/{self._server}", failures)
            self._ended.wait(_PARTING_SECONDS)
            return self._read_failures()
        return list(failures)

    def explain(self, error: Exception, timeout: int) -> None:
        """Raise LaunchError for a rendezvous that failed, if the cause is known."""
        if self.verdict is None and not isinstance(error, RendezvousTimeoutError):
            time.sleep(2 * _BEAT_SECONDS)  # the watch may be about to learn it
        if self.verdict is not None:
            self.verdict.raise_()
        with contextlib.suppress(DistError, RuntimeError):
            if isinstance(error, RendezvousClosedError):
                raise LaunchError(
                    "The other servers have ended already. Start all of them again."
                ) from error
            absent = [
                address
                for i, address in enumerate(self._addresses)
                if self._store.add(self._beat(i), 0) == 0
            ]
            if absent:
                raise LaunchError(
                    f"{', '.join(absent)} did not come within {timeout} s; "
                    f"{len(self._addresses) - len(absent)} of {len(self._addresses)} servers are "
                    f"here. Start the same command on every server of the rank table."
                ) from error

    def _beat(self, server: int) -> str:
        return f"{_ROOM}/beat/{server}"

    def _done(self, server: int) -> str:
        return f"{_ROOM}/done/{server}"

    def _finished(self, server: int) -> str:
        return f"{_ROOM}/finished/{server}"

    def _tell(self, key: str, failures: Sequence[Failure]) -> None:
        self._store.set(key, json.dumps([dataclasses.asdict(failure) for failure in failures]))
        self._store.add(f"{_ROOM}/failed", 1)

    def _read_failures(self) -> list[Failure]:
        keys = [f"{_ROOM}/failure/{i}" for i in range(len(self._addresses))]
        told = [self._store.get(key) for key in [*keys, _SILENT] if self._store.check([key])]
        return [Failure(**failure) for listed in told for failure in json.loads(listed)]

    def _run(self) -> None:
        seen = {i: (0, time.monotonic()) for i in range(len(self._addresses))}
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                self._store.add(self._beat(self._server), 1)
                if self._store.add(f"{_ROOM}/failed", 0):
                    failures = self._read_failures()
                    self.verdict = min(failures, key=lambda failure: failure.time)
                    return
                if self._server == 0:
                    self._look_for_silence(seen)
            except (DistError, RuntimeError):
                self.verdict = Failure(
                    f"server {self._addresses[0]}", " is gone: the connection is lost", time.time()
                )
                return

    def _look_for_silence(self, seen: dict[int, tuple[int, float]]) -> None:
        now = time.monotonic()
        for i in range(1, len(self._addresses)):
            beat = self._store.add(self._beat(i), 0)
            if beat != seen[i][0]:
                seen[i] = (beat, now)
            elif beat and now - seen[i][1] > _SILENCE_SECONDS:
                if not self._store.check([self._done(i)]):
                    self._silent.add(i)
                    message = f" has not been heard of for {_SILENCE_SECONDS:.0f} s"
                    silent = Failure(f"server {self._addresses[i]}", message, time.time())
                    self._tell(_SILENT, [silent])
                seen[i] = (0, now)


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
