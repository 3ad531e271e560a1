"""What accelerators can do at their best, by the names that they go by; and what a CPU has."""

from __future__ import annotations

import contextlib
import functools
import platform
import re
from pathlib import Path

# Dense half-precision FLOPs per second of the tensor cores, summed in fp32, by the makers' data
# sheets (which often print twice as much, of sparse matrices) and for GeForce their white papers.
_PEAK_FLOPS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 HBM3": 989e12,  # the SXM form says its memory instead
    "H100 NVL": 835e12,
    "H100 PCIE": 756e12,
    "A100 SXM4": 312e12,
    "A100 PCIE": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100 SXM2": 125e12,
    "V100 PCIE": 112e12,
    "V100S PCIE": 130e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
_NO_PART_OF_A_NAME = re.compile(r"NVIDIA|TESLA|GEFORCE|\d+GB")  # makers, lines, sizes of memory


def peak_flops_of(device_name: str) -> float | None:
    """Return the half-precision FLOPs per second of a device by its whole name, as torch tells it.

    None for one that is not known, which a name that only begins like a known one's is, too.
    """
    words = device_name.upper().replace("-", " ").split()
    name = " ".join(word for word in words if not _NO_PART_OF_A_NAME.fullmatch(word))
    return _PEAK_FLOPS.get(name)


@functools.cache
def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first core; nothing elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def cpu_name() -> str:
    """Return what tells this kind of CPU from others."""
    facts = _cpu_facts()
    names = ("model name", "cpu family", "model", "stepping")
    told = [facts[name] for name in names if name in facts]
    return " ".join(told) or platform.processor() or platform.machine()


def cpu_has(*units: str) -> bool:
    """Whether a CPU has any of some units, by their names in /proc/cpuinfo."""
    facts = _cpu_facts()
    return not {*units}.isdisjoint(facts.get("flags", facts.get("Features", "")).split())
