"""The only file that names devices, backends and precisions.

Everything else asks here, so that the same code runs on Ascend, GPU and CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from vitbase.errors import DeviceError

DeviceTarget = Literal["auto", "Ascend", "GPU", "CPU"]
Precision = Literal["fp32", "bf16", "fp16"]

_TORCH_NAMES = {"Ascend": ("npu",), "GPU": ("cuda", "xpu", "mps"), "CPU": ("cpu",)}
_AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A cross-entropy's loss scale: MindSpore and torch both start near 2**16.
_INITIAL_LOSS_SCALE = 2.0**16


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A device, and the arithmetic used on it."""

    device: torch.device
    precision: Precision

    @property
    def pin_memory(self) -> bool:
        """Whether batches belong in pinned memory: an accelerator copies faster from it."""
        return self.device.type != "cpu"

    @property
    def fused_optimizer(self) -> bool:
        """Whether torch has a one-kernel optimizer step for this device."""
        return self.device.type in {"cpu", "cuda"}

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

    def autocast(self) -> AbstractContextManager[None]:
        """Context for the forward pass: half precision where the run asks for it."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_AUTOCAST_DTYPES[self.precision])

    def build_loss_scaler(self) -> torch.amp.GradScaler:
        """Return the dynamic loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(
            self.device.type, init_scale=_INITIAL_LOSS_SCALE, enabled=self.precision == "fp16"
        )

    def describe(self) -> str:
        """Return one line for the log: device, threads, precision."""
        if self.device.type == "cpu":
            return f"CPU, {torch.get_num_threads()} threads, {self.precision}"
        return f"{self.device}, {self.precision}"


@functools.lru_cache(maxsize=1)
def _copy_stream(device: torch.device) -> torch.Stream:
    return torch.Stream(device=device)


def available_cores() -> int:
    """Return the number of processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_runtime(
    device_target: str = "auto", device_id: int = 0, precision: str = "auto"
) -> Runtime:
    """Choose the device and the precision.

    Args:
      device_target: "auto" (an accelerator where there is one), "Ascend", "GPU" or "CPU".
      device_id: which of the local accelerators; ignored on CPU.
      precision: "auto" takes bf16 where the device is fast at it, else fp32.
    Raises: DeviceError if the device is not there.
    """
    device = _find_device(device_target, device_id)
    if precision == "auto":
        precision = "bf16" if _fast_bf16(device) else "fp32"
    assert precision in {"fp32", "bf16", "fp16"}
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
        # Without matrix units for it, CPU bf16 is slower than fp32 by an order of magnitude.
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        except OSError:
            return False
        return "amx_bf16" in flags
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "npu"


def seed_generators(*key: int) -> None:
    """Set torch's generators, on every device, as a function of a key.

    Initialisation and each training step do so with keys of their own, so that what a step draws
    (dropout, stochastic depth) does not depend on what was drawn before it. The key is hashed as
    a whole: (1, 2) and (2, 1) are different streams.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
