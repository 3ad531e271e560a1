"""Devices and ranks as MindSpore knows them: what `runtime.py` is for torch.

`Runtime`'s collectives are those of MindSpore here, so that whatever asks a runtime to agree, to
add up or to let the first rank do something works with either engine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

import mindspore as ms
import torch
from mindspore import Tensor, communication, mint, ops

from vitbase.errors import DeviceError, RankLostError, VitbaseError
from vitbase.runtime import Precision, Runtime

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MindSporeRuntime(Runtime):
    """A device of MindSpore's, and this process's place among those that msrun has started.

    To torch, everything is on the CPU: it prepares images and counts results.
    """

    target: str = "CPU"

    def from_first(self, make: Callable[[], T], *, rank: int = 0) -> T:
        made: tuple[T | None, VitbaseError | None] = (None, None)
        if self.rank == rank:
            try:
                made = (make(), None)
            except VitbaseError as error:
                if self.num_ranks == 1:
                    raise
                made = (None, error)
        value, failed = self.all_gather(made)[rank]
        if failed is not None:
            raise failed.everywhere()
        return value  # type: ignore[return-value]

    def all_gather(self, value: T) -> list[T]:
        if self.num_ranks == 1:
            return [value]
        values: list[T | None] = [None] * self.num_ranks
        with self.naming_lost_ranks():
            mint.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        # MindSpore's own adds up float32 at most, which is too little for sums over a data set.
        if self.num_ranks > 1:
            tensor.copy_(torch.stack(self.all_gather(tensor)).sum(0))
        return tensor

    def start_max(self, value: int) -> Callable[[], int]:
        largest = max(self.all_gather(value))
        return lambda: largest

    def broadcast(self, tensor: torch.Tensor) -> None:
        if self.num_ranks > 1:
            with self.naming_lost_ranks():
                (sent,) = ops.Broadcast(0)((Tensor(tensor.numpy()),))
            tensor.copy_(torch.from_numpy(sent.asnumpy()))

    def autocast(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # the network casts for itself

    def peak_memory(self) -> int | None:
        return None if self.target == "CPU" else int(ms.runtime.max_memory_allocated())

    def describe(self) -> str:
        ranks = f"{self.num_ranks} ranks on " if self.num_ranks > 1 else ""
        return f"{ranks}{self.target}, MindSpore {ms.__version__}, {self.precision}"


@contextlib.contextmanager
def joined_runtime(
    device_target: str = "auto", device_id: int = 0, precision: str = "auto"
) -> Iterator[MindSporeRuntime]:
    """Open the device, and find the other ranks if msrun has started this process.

    Its scheduler is a process that runs the same program: it stays inside, and ends there.

    Raises: DeviceError if the device is not there, or the ranks do not find each other.
    """
    started = "MS_ROLE" in os.environ
    if started:
        local = int(os.environ.get("DEVICE_ID", "0"))
        listed = os.environ.get("VITBASE_DEVICE_IDS")
        device_id = int(listed.split(",")[local]) if listed else local
    target = _open_device(device_target, device_id)
    if precision == "auto":
        precision = "fp16" if target == "Ascend" else "fp32"
    runtime = MindSporeRuntime(torch.device("cpu"), _checked(precision, target), target=target)
    if not started:
        yield runtime
        return
    try:
        communication.init()
    except RuntimeError as error:
        place = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
        raise RankLostError(
            f"Rank {os.environ.get('RANK_ID', '?')} of {os.environ.get('MS_WORKER_NUM')} did not "
            f"find the others at {place}, where msrun's scheduler should be: "
            f"{str(error).strip().splitlines()[0]} Is the port free, and every server started?"
        ) from None
    rank, ranks = communication.get_rank(), communication.get_group_size()
    os.environ["RANK"] = str(rank)  # by which every process knows whether it talks
    yield dataclasses.replace(runtime, rank=rank, num_ranks=ranks)


def count_accelerators() -> int:
    """Return the number of Ascend devices that MindSpore finds here."""
    return int(ms.hal.device_count("Ascend")) if ms.hal.is_available("Ascend") else 0


def _open_device(asked: str, device_id: int) -> str:
    """Choose a device by its target. Returns: the target. Raises: DeviceError."""
    has_ascend = bool(ms.hal.is_available("Ascend"))
    target = ("Ascend" if has_ascend else "CPU") if asked == "auto" else asked
    if target == "Ascend" and not has_ascend:
        raise DeviceError(
            f"device_target Ascend is not available: MindSpore {ms.__version__} finds no Ascend "
            f"device here. Are driver, firmware and CANN installed, and its set_env.sh sourced? "
            f"Use --device_target CPU or auto for the processor."
        )
    try:
        if target == "Ascend":
            ms.set_device(target, device_id)
        else:
            ms.set_device(target)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"MindSpore cannot open {target} {device_id}: {str(error).strip().splitlines()[0]}"
        ) from None
    ms.set_context(mode=ms.PYNATIVE_MODE)
    if target == "CPU":
        # Else the threads that hand operators over spin, and on few cores take them from those
        # that compute: an operator of a tenth of a millisecond then takes four.
        ms.runtime.launch_blocking()
    return target


def _checked(precision: str, target: str) -> Precision:
    if precision == "bf16" and target == "CPU":
        raise DeviceError(
            "precision bf16 needs an Ascend 910B under engine mindspore; MindSpore's operators "
            "for the CPU have none. Give --precision fp32 or fp16."
        )
    assert precision in {"fp32", "bf16", "fp16"}
    return precision  # type: ignore[return-value]
