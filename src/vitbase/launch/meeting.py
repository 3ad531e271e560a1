"""Where servers meet: a store that only they reach, and a state in it that is no program.

torchrun keeps its rendezvous in a store that listens on every interface, as a pickle, which runs
whatever it says: who reaches the port owns the servers. Here a single server's store is a file in a
private folder; that of several listens on the first server's own address of the rank table; and the
state is JSON, signed where the servers share a secret. Tensors, and what ranks tell each other, are
exchanged without a signature: the network between the servers has to be trusted (SECURITY.md).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import pickle
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous.api import RendezvousStateError
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousBackend,
    Token,
    _NodeDesc,
    _RendezvousState,
)

from vitbase.errors import LaunchError
from vitbase.files import parse_json
from vitbase.rendezvous import bound_socket

SECRET = "VITBASE_SECRET"
"""The environment variable with what the servers of a launch share."""

_LONGEST_STATE = 1 << 20  # bytes of JSON; a node takes about a hundred
_MOST_NODES = 10_000


def read_secret(secret_file: str | None) -> bytes | None:
    """Return what the servers share: the content of a file, else of the environment's variable.

    Raises: LaunchError if the file cannot be read, or the secret is too short to be one.
    """
    if secret_file is None:
        secret = os.environ.get(SECRET, "").encode()
        if not secret:
            return None
        what = SECRET
    else:
        what = f"The secret_file {secret_file}"
        try:
            secret = Path(secret_file).read_bytes().strip()
        except OSError as error:
            raise LaunchError(f"{what} cannot be read: {error.strerror or error}.") from None
    if len(secret) < 16:
        raise LaunchError(
            f"{what} has {len(secret)} bytes; a secret has at least 16, such as those of: "
            f"openssl rand -hex 32"
        )
    return secret


@dataclasses.dataclass(frozen=True)
class Seal:
    """Signs what is put into a store, and knows it again; without a secret it does neither."""

    secret: bytes | None = None

    def close(self, text: str, purpose: str) -> str:
        """Return a text as it goes into the store under a purpose, such as its key."""
        if self.secret is None:
            return text
        return f"{self._sign(text, purpose)} {text}"

    def open(self, sealed: bytes, purpose: str) -> str:
        """Return what was closed.

        Raises: LaunchError if it was not closed with this secret; ValueError if it is no text.
        """
        if self.secret is None:
            return sealed.decode()
        text = sealed.decode(errors="replace")
        signature, _, text = text.partition(" ")
        if not hmac.compare_digest(signature.encode(), self._sign(text, purpose).encode()):
            raise self._refuse(purpose)
        return text

    def _sign(self, text: str, purpose: str) -> str:
        assert self.secret is not None
        message = f"{purpose}\0{text}".encode()
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()

    def _refuse(self, purpose: str) -> LaunchError:
        return LaunchError(
            f"What another server, or something else that reaches the port, says ({purpose}) is "
            f"not signed with this server's secret. Give every server the same {SECRET} or "
            f"--secret_file, and keep others out of this network."
        )


def open_store(address: str, port: int, *, hosts: bool, timeout: int) -> TCPStore:
    """Open the store by which several servers meet, or connect to it.

    Args:
      address: the first server's; where it hosts, the store listens there and nowhere else.
    Raises: LaunchError if the address or port cannot be listened on; torch's errors.
    """
    wait = timedelta(seconds=timeout)
    if not hosts:
        return TCPStore(address, port, is_master=False, timeout=wait)
    try:
        listening = bound_socket(address, port)
    except OSError as error:
        raise LaunchError(
            f"This server cannot listen at {address} port {port}: {error.strerror or error}. "
            f"Is {address} its address? Perhaps another run has the port: give another --port, the "
            f"same on every server."
        ) from None
    # The store owns the socket from here on; it would ignore a host's name, and listen everywhere.
    return TCPStore(
        address,
        port,
        is_master=True,
        timeout=wait,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )


def open_file(folder: Path) -> FileStore:
    """Open the store of a single server: a file in a folder that only its user can read."""
    return FileStore(str(folder / "meeting"))


class JsonBackend(RendezvousBackend):
    """torchrun's rendezvous state in a store, as JSON.

    torchrun hands over pickles of its own making and wants such back; they do not leave this
    process.
    """

    def __init__(self, store: Store, run_id: str, seal: Seal) -> None:
        self._inner = C10dRendezvousBackend(store, run_id)
        self._seal, self._purpose = seal, f"rendezvous/{run_id}"

    @property
    def name(self) -> str:
        return "c10d"

    def get_state(self) -> tuple[bytes, Token] | None:
        found = self._inner.get_state()
        return None if found is None else (self._pickled(found[0]), found[1])

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        text = json.dumps(state_to_json(pickle.loads(state)), sort_keys=True)  # of this process
        found = self._inner.set_state(self._seal.close(text, self._purpose).encode(), token)
        return None if found is None else (self._pickled(found[0]), found[1], found[2])

    def _pickled(self, sealed: bytes) -> bytes:
        try:
            state = state_from_json(self._seal.open(sealed, self._purpose))
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise RendezvousStateError(f"the rendezvous state is damaged ({error})") from None
        return pickle.dumps(state)


def state_to_json(state: _RendezvousState) -> dict[str, Any]:
    """Return a rendezvous state as plain values."""

    def listed(nodes: set[_NodeDesc]) -> list[list[Any]]:
        return sorted([node.addr, node.pid, node.local_id] for node in nodes)

    return {
        "round": state.round,
        "complete": state.complete,
        "closed": state.closed,
        "deadline": state.deadline.isoformat() if state.deadline else None,
        "participants": [
            [node.addr, node.pid, node.local_id, rank]
            for node, rank in sorted(state.participants.items(), key=lambda item: item[1])
        ],
        "wait_list": listed(state.wait_list),
        "redundancy_list": listed(state.redundancy_list),
        "last_heartbeats": [
            [node.addr, node.pid, node.local_id, moment.isoformat()]
            for node, moment in state.last_heartbeats.items()
        ],
    }


def state_from_json(text: str) -> _RendezvousState:
    """Build a rendezvous state. Raises: ValueError, LookupError or TypeError if it is none."""
    found = parse_json(text, longest=_LONGEST_STATE)
    state = _RendezvousState()
    state.round, state.complete = _is(int, found["round"]), _is(bool, found["complete"])
    state.closed = _is(bool, found["closed"])
    deadline = found["deadline"]
    state.deadline = None if deadline is None else datetime.fromisoformat(deadline)
    state.participants = {
        _node(*names): _is(int, rank) for *names, rank in _few(found["participants"])
    }
    state.wait_list = {_node(*names) for names in _few(found["wait_list"])}
    state.redundancy_list = {_node(*names) for names in _few(found["redundancy_list"])}
    state.last_heartbeats = {
        _node(*names): datetime.fromisoformat(moment)
        for *names, moment in _few(found["last_heartbeats"])
    }
    return state


def _node(addr: object, pid: object, local_id: object) -> _NodeDesc:
    return _NodeDesc(_is(str, addr), _is(int, pid), _is(int, local_id))


def _is(kind: type[Any], value: object) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} should be of type {kind.__name__}")
    return value


def _few(rows: list[Any]) -> list[Any]:
    if len(_is(list, rows)) > _MOST_NODES:
        raise ValueError(f"{len(rows)} nodes")
    return rows
