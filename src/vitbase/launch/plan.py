"""Starts ranks: a rank table, a cluster, or this machine's devices -> torchrun.

Every server of a cluster starts the same command. What `vitbase launch` runs is the torchrun
command that `--print` shows, through torchrun's own parser and agent, in this process: so that a
server that does not come, a rank that dies or a port in use end with one clear message.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from vitbase.console import say, warn
from vitbase.errors import LAUNCHED, LaunchError
from vitbase.launch.meeting import read_secret
from vitbase.launch.ranks import run_agent
from vitbase.launch.ranktable import RankTable, read_rank_table
from vitbase.launch.words import find_value
from vitbase.rendezvous import STORE, loopback_variables
from vitbase.runtime import available_cores

PORT = 29500
"""Where the servers meet, on the first of them: torchrun's own default."""

DEVICE_IDS = "VITBASE_DEVICE_IDS"
"""The local devices of a server's ranks, in order: LOCAL_RANK 1 takes the second, …"""

MAX_RESTARTS = 3
"""Of a run that nobody watches: transient faults pass, a fault that comes back ends it."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What this server starts.

    Attributes:
      addresses: of all servers; they meet at the first.
      server: which of them this one is.
      num_devices: ranks on each server.
      words: after torchrun's options: `-m vitbase train imagenet`, or a script and its options.
      device_ids: of this server's ranks; none: 0, 1, …
      port: of the meeting of several servers; a single one listens nowhere.
      run_id: equal on servers that belong together.
      timeout: seconds to wait for the other servers.
      secret: what the servers share, to know each other by; None trusts whoever reaches the port.
    """

    addresses: tuple[str, ...]
    server: int
    num_devices: int
    words: tuple[str, ...]
    device_ids: tuple[int, ...] | None = None
    port: int = 0
    run_id: str = "vitbase"
    max_restarts: int = MAX_RESTARTS
    timeout: int = 600
    secret: bytes | None = dataclasses.field(default=None, repr=False)

    @property
    def is_alone(self) -> bool:
        """Whether all ranks are on this machine: then nothing listens beyond it."""
        return len(self.addresses) == 1

    def torchrun_words(self, folder: str) -> list[str]:
        """Return the arguments of torchrun on this server.

        Args:
          folder: of this user alone, where the ranks of a single server meet.

        The rendezvous is c10d, not static. With static, nothing tells a server that a rank of
        another has died: its own ranks are restarted only once they fail too, each server counts
        restarts for itself, and the counts must agree for the ranks to meet again. With c10d, a
        server that restarts its ranks joins the next round of the rendezvous, which makes every
        other server restart as well.

        But c10d gives rank 0 to the server whose --local_addr sorts first, whatever --node_rank
        says. So the first server gives its address, which the ranks of all connect to, and the
        others give a name that sorts after any address, in the table's order; nothing else reads
        it. Thus ranks follow the table, and rank 0, its log and checkpoints are on the first
        server, after every restart.
        """
        first = self.addresses[0]
        host = f"[{first}]" if ":" in first else first
        local = first if self.server == 0 else f"~{self.server:05d}"
        # is_host: c10d would guess it from host names, and silently join what has its port.
        conf = f"is_host={int(self.server == 0)},join_timeout={self.timeout},"
        conf += f"read_timeout={self.timeout}"
        endpoint = f"{host}:{self.port}"
        if self.is_alone:
            endpoint, conf = f"{folder}/meeting", f"store_type=file,join_timeout={self.timeout}"
        return [
            f"--nnodes={len(self.addresses)}",
            f"--nproc_per_node={self.num_devices}",
            "--rdzv_backend=c10d",
            f"--rdzv_endpoint={endpoint}",
            f"--rdzv_id={self.run_id}",
            f"--rdzv_conf={conf}",
            f"--local_addr={local}",
            f"--max_restarts={self.max_restarts}",
            *self.words,
        ]

    def environment(self, folder: str) -> dict[str, str]:
        """Return the variables that the ranks need beside torchrun's own.

        Args: as of :meth:`torchrun_words`.
        """
        variables = {
            # The ranks' store must be new after a restart, or they connect to dead ranks: a
            # shared one keeps what the dead wrote (seen with torch 2.14; pytorch issue 135712).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            # torchrun would take 1, which leaves most cores of a CPU server idle.
            "OMP_NUM_THREADS": os.environ.get(
                "OMP_NUM_THREADS", str(max(1, available_cores() // self.num_devices))
            ),
        }
        if self.is_alone:
            variables[STORE] = folder
            variables |= loopback_variables()
        if self.device_ids is not None:
            variables[DEVICE_IDS] = ",".join(map(str, self.device_ids))
        return variables

    def command(self) -> str:
        """Return the command to start this server by hand, in a shell."""
        folder = f"@{secrets.token_hex(8)}@"  # stands for one that the command makes
        variables = [f"{name}={value}" for name, value in self.environment(folder).items()]
        words = [sys.executable, "-m", "torch.distributed.run", *self.torchrun_words(folder)]
        command = " ".join(map(shlex.quote, [*variables, *words]))
        if self.is_alone:
            command = command.replace(folder, '"$meeting"')
            return f"meeting=$(mktemp -d) && env {command}"
        return (
            f"# torchrun listens on every interface of this server, and runs what it is told by "
            f"whoever reaches port {self.port}; `vitbase launch` does not.\nenv {command}"
        )


def entry_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return torchrun's words for a vitbase command, or for a Python script and its options."""
    if words and words[0].endswith(".py"):
        if not Path(words[0]).is_file():
            raise LaunchError(f"The script {words[0]} does not exist.")
        return tuple(words)
    return ("-m", "vitbase", *words)


def count_devices(words: Sequence[str] = ()) -> int:
    """Return the number of accelerators that a command may use; 0 means the CPU."""
    target = find_value(list(words), "device_target") or "auto"
    if target.lower() == "cpu":
        return 0
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return 0 if accelerator is None else torch.accelerator.device_count()


def plan_local(
    num_devices: int | None, words: Sequence[str], *, max_restarts: int = MAX_RESTARTS
) -> Plan:
    """Plan ranks on this machine alone.

    Args:
      num_devices: ranks; None is all local devices, or one on a machine without accelerators.
      words: a vitbase command, or a script and its options.
    Raises: LaunchError if there are fewer devices.
    """
    there = count_devices(words)
    num_devices = num_devices or there or 1
    if there and num_devices > there:
        raise LaunchError(
            f"num_devices {num_devices} is more than this machine has ({there}). Give "
            f"--num_devices {there}, or a rank table of several servers to `vitbase launch`."
        )
    return Plan(("127.0.0.1",), 0, num_devices, entry_of(words), max_restarts=max_restarts)


def plan_server(
    table: RankTable,
    words: Sequence[str],
    *,
    server_id: str | None = None,
    port: int = PORT,
    max_restarts: int = MAX_RESTARTS,
    timeout: int = 600,
    secret: bytes | None = None,
) -> Plan:
    """Plan this server's ranks of a rank table.

    Raises: LaunchError if this machine is not in the table, or lacks a device of it.
    """
    number = table.find_server(server_id)
    server = table.servers[number]
    return Plan(
        tuple(server.address for server in table.servers),
        number,
        len(server.device_ids),
        entry_of(words),
        _local_ids(table, number, count_devices(words)),
        port=port,
        run_id=f"vitbase-{table.digest}",
        max_restarts=max_restarts,
        timeout=timeout,
        secret=secret,
    )


def _local_ids(table: RankTable, number: int, there: int) -> tuple[int, ...]:
    """Return the numbers by which torch knows a server's devices."""
    ids = table.servers[number].device_ids
    if there == 0 or max(ids) < there:
        return ids
    if len(ids) == there:
        # In a container that is given devices 4 to 7, the table names these, and torch counts
        # what it sees from 0.
        return tuple(sorted(range(there), key=lambda i: sorted(ids).index(ids[i])))
    raise LaunchError(
        f"The rank table {table.path} gives server {table.servers[number].server_id} the "
        f"device_id {max(ids)}, but this machine has {there} devices, numbered from 0."
    )


def run_plan(plan: Plan) -> int:
    """Start this server's ranks and wait for their end.

    Returns: 0 when all ranks are done; else as `run_agent`.
    Raises: LaunchError naming the rank that failed, the server that is missing, or the port.
    """
    with contextlib.ExitStack() as stack:
        # Only its user can read it: the ranks of a single server meet in it.
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vitbase-ranks-"))
        variables = {**plan.environment(folder), LAUNCHED: str(os.getpid())}
        stack.callback(_restore, {name: os.environ.get(name) for name in variables})
        os.environ.update(variables)  # torchrun has no other way to hand them to the ranks
        if plan.server > 0:  # else its log would stay empty
            say(
                f"Server {plan.server + 1} of {len(plan.addresses)}, {plan.num_devices} ranks; the "
                f"log and the checkpoints are on {plan.addresses[0]}."
            )
            _await_first_server(plan)
        elif not plan.is_alone:
            say(
                f"Server 1 of {len(plan.addresses)}, {plan.num_devices} ranks; waiting for the "
                f"others on {plan.addresses[0]} port {plan.port}."
            )
        return run_agent(
            plan.torchrun_words(folder),
            plan.addresses,
            plan.server,
            plan.timeout,
            folder=Path(folder),
            secret=plan.secret,
        )


def run_local(num_devices: int, words: Sequence[str], *, max_restarts: int = 0) -> int:
    """Start ranks of a vitbase command on this machine, and wait for their end.

    Args:
      num_devices: ranks, each with a device of its own.
      words: the command, as after `vitbase`: ["train", "imagenet", "--lr_init", "0.1"].
      max_restarts: 0 suits a run that somebody watches.
    Returns: the exit code, as of `run_agent`.
    Raises: LaunchError naming the rank that failed, with its own message.
    """
    return run_plan(plan_local(num_devices, words, max_restarts=max_restarts))


def plan_launch(
    words: Sequence[str],
    *,
    rank_table: str | None = None,
    server_id: str | None = None,
    num_devices: int | None = None,
    port: int = PORT,
    max_restarts: int = MAX_RESTARTS,
    timeout: int = 600,
    secret_file: str | None = None,
) -> Plan:
    """Plan what `vitbase launch` starts on this server. Raises: LaunchError, naming the option."""
    for option, value, least in (
        ("num_devices", num_devices, 1),
        ("max_restarts", max_restarts, 0),
        ("timeout", timeout, 1),
    ):
        if value is not None and value < least:
            raise LaunchError(f"Option '{option}' should be at least {least}, but is {value}.")
    if not 0 < port < 2**16:
        raise LaunchError(f"Option 'port' should be between 1 and 65535, but is {port}.")
    if rank_table is None:
        if server_id is not None:
            raise LaunchError("Option 'server_id' names a server of a rank table: give rank_table.")
        return plan_local(num_devices, words, max_restarts=max_restarts)
    if num_devices is not None:
        raise LaunchError("Give rank_table or num_devices: the table names the devices.")
    return plan_server(
        read_rank_table(rank_table),
        words,
        server_id=server_id,
        port=port,
        max_restarts=max_restarts,
        timeout=timeout,
        secret=read_secret(secret_file),
    )


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _await_first_server(plan: Plan) -> None:
    """Wait until the first server answers. Raises: LaunchError telling what was tried."""
    place, started = (plan.addresses[0], plan.port), time.monotonic()
    told = False
    while True:
        try:
            with socket.create_connection(place, timeout=5):
                return
        except OSError as error:
            reason = error.strerror or str(error)
            waited = time.monotonic() - started
        if waited >= plan.timeout:
            raise LaunchError(
                f"The first server, {place[0]}, did not answer on port {place[1]} within "
                f"{plan.timeout} s (the last try: {reason}). Start the same command there, see "
                f"that the port is the same and open, and that the address is right."
            )
        if not told and waited > 3:
            told = True
            warn(f"vitbase: waiting for the first server, {place[0]} port {place[1]} ({reason})")
        time.sleep(min(0.5, max(0.0, plan.timeout - waited)))
