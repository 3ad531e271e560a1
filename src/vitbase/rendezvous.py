"""Where ranks meet: in a file of their user's alone, or at one address of the first of them."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta

from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

STORE = "VITBASE_STORE"
"""Set by a launcher whose ranks are all on this machine: a folder of their user's alone, in which
they meet without listening on a port."""


def bound_socket(address: str, port: int) -> socket.socket:
    """Return a socket that will listen on one address of this machine, and on no other.

    Raises: OSError if it is none, or the port is taken.
    """
    places = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = places[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError:
        made.close()
        raise
    return made


def loopback_variables() -> dict[str, str]:
    """Return the environment with which backends listen on the interface that nobody else reaches.

    Whatever was chosen for several servers does not hold for one.
    """
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in names if name.startswith("lo")), "lo")
    return {f"{backend}_SOCKET_IFNAME": loopback for backend in ("GLOO", "NCCL", "HCCL", "TP")}


def beside(store: Store, seconds: float) -> Store:
    """Open a store once more, for another thread, which waits so long at most for a key."""
    other: Store = store.clone()
    other.set_timeout(timedelta(seconds=seconds))
    return other


def is_with_first_rank() -> bool:
    """Whether the store in which ranks meet ends with the first of them."""
    return STORE not in os.environ and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def open_store(timeout: timedelta) -> Store:
    """Open the store by which ranks meet; that of the first rank listens on its address alone.

    Raises: torch's errors if the others are not found in time, or the environment says no place.
    """
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    folder = os.environ.get(STORE)
    if folder is not None:
        # Another file after each restart: the old one keeps what the dead have written.
        name = f"ranks-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = FileStore(os.path.join(folder, name), ranks)
        store.set_timeout(timeout)
        return store
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if rank == 0 and address and port and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        with contextlib.suppress(OSError):  # no address of its own: of a proxy, perhaps
            listening = bound_socket(address, int(port))
            return TCPStore(
                address,
                int(port),
                ranks,
                is_master=True,
                timeout=timeout,
                multi_tenant=True,
                master_listen_fd=listening.detach(),
            )
    found: Store = next(rendezvous("env://", timeout=timeout))[0]
    return found
