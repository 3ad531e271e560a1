"""What the ranks of a run tell each other, and who of them is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed

from vitbase.errors import RankLostError, VitbaseError

T = TypeVar("T")

# What backends say of a rank that is no longer there.
_LOST = ("onnection closed", "onnection reset", "Broken pipe", "imed out", "timeout", "remote")


class Ranks:
    """A process's place among those that work with it.

    Every method that says "collective" must be called by all ranks, in the same order.
    """

    device: torch.device
    rank: int
    num_ranks: int

    @property
    def is_first(self) -> bool:
        """Whether this rank writes, and talks."""
        return self.rank == 0

    def from_first(self, make: Callable[[], T], *, rank: int = 0) -> T:
        """Let the first rank, or another one, make something, and give it to all (collective).

        Raises: on every rank what that one raised, if it is the user's to mend.
        """
        if self.num_ranks == 1:
            return make()
        made: list[Any] = [None]
        if self.rank == rank:
            try:
                made = [(make(), None)]
            except VitbaseError as error:
                made = [(None, error)]
        with self.naming_lost_ranks():
            distributed.broadcast_object_list(made, src=rank, device=self.device)
        value, failed = made[0]
        if failed is not None:
            raise failed.everywhere()
        result: T = value
        return result

    def everywhere(self, make: Callable[[], T]) -> T:
        """Let every rank make something of its own (collective).

        Raises: on every rank what the first of them to fail raised, if it is the user's to mend.
        """
        made, error = None, None
        try:
            made = make()
        except VitbaseError as found:
            if self.num_ranks == 1:
                raise
            error = found
        for rank, failed in enumerate(self.all_gather(error)):
            if failed is not None:
                if rank:
                    failed.args = (f"On rank {rank}: {failed.args[0]}", *failed.args[1:])
                raise failed.everywhere()
        result: T = made  # type: ignore[assignment]
        return result

    def all_gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank (collective)."""
        if self.num_ranks == 1:
            return [value]
        values: list[Any] = [None] * self.num_ranks
        with self.naming_lost_ranks():
            distributed.all_gather_object(values, value)
        return values

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over the ranks, in place (collective). Returns: the tensor."""
        if self.num_ranks > 1:
            with self.naming_lost_ranks():
                distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor on the device with the first rank's (collective)."""
        if self.num_ranks > 1:
            with self.naming_lost_ranks():
                distributed.broadcast(tensor, src=0)

    def start_max(self, value: int) -> Callable[[], int]:
        """Ask for the largest of all ranks' numbers (collective). Returns: what waits for it."""
        if self.num_ranks == 1:
            return lambda: value
        largest = torch.tensor(value, dtype=torch.int32)  # on the CPU: the device goes on computing
        with self.naming_lost_ranks():
            work = distributed.all_reduce(largest, distributed.ReduceOp.MAX, async_op=True)

        def wait() -> int:
            with self.naming_lost_ranks():
                work.wait()
            return int(largest)

        return wait

    @contextlib.contextmanager
    def naming_lost_ranks(self) -> Iterator[None]:
        """Turn what a backend raises when another rank is gone into a message for people."""
        try:
            yield
        except (RuntimeError, distributed.DistError) as error:
            text = str(error)
            if self.num_ranks == 1 or not any(word in text for word in _LOST):
                raise
            first = text.strip().splitlines()[0]
            raise RankLostError(
                f"Rank {self.rank} of {self.num_ranks} lost another rank: {first}. The one that "
                f"stopped first tells why in its own log; the same command continues the run from "
                f"its last checkpoint."
            ) from error
