"""The only file that names devices, backends, ranks and precisions.

Everything else asks here, so that the same code runs on Ascend, GPU and CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed
from torch.distributed import Store  # type: ignore[attr-defined]

from vitbase.accelerators import cpu_has, cpu_name, peak_flops_of
from vitbase.errors import DeviceError, RankLostError
from vitbase.ranks import Ranks
from vitbase.rendezvous import open_store
from vitbase.stopping import ending_at_once

Precision = Literal["fp32", "bf16", "fp16"]

_TORCH_NAMES = {"Ascend": ("npu",), "GPU": ("cuda", "xpu", "mps"), "CPU": ("cpu",)}
_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A cross-entropy's loss scale: MindSpore and torch both start near 2**16.
_INITIAL_LOSS_SCALE = 2.0**16
# Longer than a rank may be alone with a checkpoint or a slow disk; a rank that has died is noticed
# at once, by its closed connections and by the launcher.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
# Servers of a cluster may start minutes apart.
_JOIN_TIMEOUT = timedelta(minutes=5)


@dataclasses.dataclass(frozen=True)
class Runtime(Ranks):
    """A device, the arithmetic used on it, and this process's place among others."""

    device: torch.device
    precision: Precision
    rank: int = 0
    num_ranks: int = 1
    store: Store | None = dataclasses.field(default=None, repr=False, compare=False)
    """Where the ranks have met."""

    def start_read(self, tensor: torch.Tensor) -> Callable[[], list[float]]:
        """Ask for the numbers of a small tensor on the device, which goes on computing.

        Returns: what waits until the device has come so far, and gives them.
        """
        if self.device.type == "cpu":
            return tensor.tolist
        numbers = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        numbers.copy_(tensor, non_blocking=True)
        there = torch.Event(self.device)
        there.record(torch.accelerator.current_stream(self.device))

        def wait() -> list[float]:
            there.synchronize()
            return list(numbers.tolist())

        return wait

    def peak_flops(self) -> float | None:
        """Return what the device could do at its best, in FLOPs per second, where that is known."""
        if self.device.type != "cuda" or self.precision == "fp32":
            return None
        return peak_flops_of(torch.cuda.get_device_name(self.device))

    def peak_memory(self) -> int | None:
        """Return the most bytes that tensors took on the device so far; None on a CPU."""
        if self.device.type == "cpu":
            return None
        return int(torch.accelerator.max_memory_allocated(self.device))

    def free_memory(self) -> int | None:
        """Return the bytes that this process could still take on the device, if that says so."""
        tell = getattr(torch.get_device_module(self.device), "mem_get_info", None)
        if tell is None:
            return None
        free, _ = tell(self.device)
        held = torch.accelerator.memory_reserved(self.device)
        return int(free + held - torch.accelerator.memory_allocated(self.device))

    @property
    def pin_memory(self) -> bool:
        """Whether batches belong in pinned memory: an accelerator copies faster from it."""
        return self.device.type != "cpu"

    @property
    def reads_at_once(self) -> bool:
        """Whether the host has a tensor's numbers without waiting for anything."""
        return self.device.type == "cpu"

    @property
    def fused_optimizer(self) -> bool:
        """Whether torch has a one-kernel optimizer step for this device."""
        return self.device.type in {"cpu", "cuda"}

    @property
    def has_fp8(self) -> bool:
        """Whether the device multiplies matrices in FP8."""
        return self.device.type == "cuda" and torch.cuda.get_device_capability(self.device) >= (
            8,
            9,
        )

    @property
    def has_graphs(self) -> bool:
        """Whether the device records work, and has optimizers that may be recorded."""
        return self.device.type == "cuda" and hasattr(torch.accelerator, "Graph")

    def send(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Copy host tensors to the device, while it still computes what was asked of it before.

        Pinned tensors are copied on a stream of their own, which the work asked for next waits for.
        """
        if self.device.type == "cpu":
            return tensors
        computing = torch.accelerator.current_stream(self.device)
        copying = _copy_stream(self.device)
        with copying:
            moved = tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)
        computing.wait_stream(copying)
        for tensor in moved:
            tensor.record_stream(computing)  # its memory is not free before that work is done
        return moved

    def codec_stream(self) -> int | None:
        """Return the handle of the stream in use, for nvImageCodec; None of devices without it."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def wait(self) -> None:
        """Wait until the device has done all that was asked of it."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    @property
    def half(self) -> torch.dtype | None:
        """What matrix products are computed in, if not in fp32."""
        return _HALF.get(self.precision)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context for the forward pass: half precision where the run asks for it."""
        if self.half is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.half)

    def build_loss_scaler(self) -> torch.amp.GradScaler:
        """Return the dynamic loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(
            self.device.type, init_scale=_INITIAL_LOSS_SCALE, enabled=self.precision == "fp16"
        )

    def describe(self) -> str:
        """Return one line for the log: device, threads, precision."""
        ranks = f"{self.num_ranks} ranks on " if self.num_ranks > 1 else ""
        if self.device.type == "cpu":
            return f"{ranks}CPU, {torch.get_num_threads()} threads, {self.precision}"
        place = self.device.type if self.num_ranks > 1 else self.device
        return f"{ranks}{place}, {self.precision}"

    @property
    def machine(self) -> str:
        """What computes, and how much of it: the same text on machines that are alike."""
        if self.device.type == "cpu":
            return f"{cpu_name()}, {torch.get_num_threads()} threads"
        return str(torch.get_device_module(self.device).get_device_name(self.device))

    @property
    def has_bf16(self) -> bool:
        """Whether the device computes in bf16; that it is faster so, a trial has to tell."""
        on_cpu = self.device.type == "cpu" and cpu_has("avx512_bf16", "bf16")
        return on_cpu or _fast_bf16(self.device)


@functools.lru_cache(maxsize=1)
def _copy_stream(device: torch.device) -> torch.Stream:
    return torch.Stream(device=device)


def available_cores() -> int:
    """Return the number of processor cores this process may use: its share, among local ranks."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, cores // local_ranks())


def local_ranks() -> int:
    """Return how many ranks torchrun has started on this server."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched_ranks() -> int | None:
    """Return how many ranks torchrun has started; None if it did not start this process."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK"} <= os.environ.keys() else None


def is_first_rank() -> bool:
    """Whether this process talks for all ranks; also before they have found each other."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined_runtime(
    device_target: str = "auto",
    device_id: int = 0,
    precision: str = "auto",
    *,
    tf32: bool = False,
    wait_at_least: float = 0.0,
) -> Iterator[Runtime]:
    """Open this rank's share of the run that torchrun has started, or the one device there is.

    Args and errors: as of :func:`local_runtime`. A rank's device is the one of its number on the
      server, or of its place in `VITBASE_DEVICE_IDS` ("2,3"), as a rank table names them. Others
      are waited for in a collective for ten minutes, or `wait_at_least` seconds.
    Raises: DeviceError, too, if the ranks do not find each other.
    """
    ranks = launched_ranks()
    if ranks is not None:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        listed = os.environ.get("VITBASE_DEVICE_IDS")
        device_id = int(listed.split(",")[local]) if listed else local
    runtime = local_runtime(device_target, device_id, precision, tf32=tf32)
    if ranks is None or ranks == 1:
        yield runtime
        return
    rank = int(os.environ["RANK"])
    store = _join(runtime.device, max(_COLLECTIVE_TIMEOUT, timedelta(seconds=wait_at_least)))
    try:
        yield dataclasses.replace(runtime, rank=rank, num_ranks=ranks, store=store)
    finally:
        distributed.destroy_process_group()


def _join(device: torch.device, timeout: timedelta) -> Store:
    """Find the other ranks. Returns: where they met."""
    backend = distributed.get_default_backend_for_device(device)
    if device.type != "cpu":
        backend = f"cpu:gloo,{device.type}:{backend}"
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        with ending_at_once():
            store = open_store(_JOIN_TIMEOUT)
            distributed.init_process_group(
                backend,
                store=store,
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                timeout=timeout,
                device_id=None if device.type == "cpu" else device,
            )
    except (RuntimeError, ValueError, distributed.DistError) as error:
        raise RankLostError(
            f"Rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find the others at "
            f"{place} (MASTER_ADDR:MASTER_PORT): {str(error).strip().splitlines()[0]}. Is that the "
            f"first server's address, its port free, and every server started?"
        ) from None
    return store


def local_runtime(
    device_target: str = "auto", device_id: int = 0, precision: str = "auto", *, tf32: bool = False
) -> Runtime:
    """Choose the device and the precision, for this process alone.

    Args:
      device_target: "auto" (an accelerator where there is one), "Ascend", "GPU" or "CPU".
      device_id: which of the local accelerators; ignored on CPU.
      precision: "auto" takes bf16 where the device is fast at it, else fp32.
      tf32: whether float32 matrix products may round their factors to TF32.
    Raises: DeviceError if the device is not there.
    """
    device = _find_device(device_target, device_id)
    if precision == "auto":
        precision = "bf16" if _fast_bf16(device) else "fp32"
    assert precision in {"fp32", "bf16", "fp16"}
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    return Runtime(device, precision)  # type: ignore[arg-type]


def _find_device(device_target: str, device_id: int) -> torch.device:
    # check_available: torch may name an accelerator it was built for that is not plugged in.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device_target == "CPU" or (device_target == "auto" and accelerator is None):
        return torch.device("cpu")
    if accelerator is None or (
        device_target != "auto" and accelerator.type not in _TORCH_NAMES[device_target]
    ):
        found = f"only {accelerator.type}" if accelerator is not None else "no accelerator"
        plugin = " Is torch-npu installed?" if device_target == "Ascend" else ""
        raise DeviceError(
            f"device_target {device_target} is not available: torch {torch.__version__} finds "
            f"{found} here.{plugin} Use --device_target CPU or auto, or install the torch build "
            f"for your device."
        )
    count = torch.accelerator.device_count()
    if device_id >= count:
        raise DeviceError(
            f"device_id {device_id} does not exist: this machine has {count} "
            f"{accelerator.type} device(s), numbered from 0."
        )
    torch.accelerator.set_device_index(device_id)
    return torch.device(accelerator.type, device_id)


def _fast_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return cpu_has("amx_bf16")  # without units for matrices it may be ten times slower
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "npu"
