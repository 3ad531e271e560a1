"""What accelerators can do at their best, by the names that they go by; and what a CPU has."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import platform
import re
from pathlib import Path

from vitbase.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a device does at its best.

    Attributes:
      flops: half-precision FLOPs per second.
      bandwidth: bytes per second, from and to its memory.
    """

    flops: float
    bandwidth: float


# Dense half-precision FLOPs per second of the tensor cores, summed in fp32, and bandwidth, by the
# makers' data sheets (which often print twice the FLOPs, of sparse matrices) and for GeForce their
# white papers. Of several sizes of memory, that of the largest; of the GH200 the one of 96 GB.
_PEAKS = {
    "B200": Peak(2250e12, 8e12),
    "GH200": Peak(989e12, 4e12),
    "H200": Peak(989e12, 4.8e12),
    "H200 NVL": Peak(835e12, 4.8e12),
    "H100 HBM3": Peak(989e12, 3.35e12),  # the SXM form says its memory instead
    "H100 NVL": Peak(835e12, 3.9e12),
    "H100 PCIE": Peak(756e12, 2e12),
    "A100 SXM4": Peak(312e12, 2.039e12),
    "A100 PCIE": Peak(312e12, 1.935e12),
    "A40": Peak(149.7e12, 696e9),
    "A30": Peak(165e12, 933e9),
    "A10": Peak(125e12, 600e9),
    "L40S": Peak(362e12, 864e9),
    "L40": Peak(181e12, 864e9),
    "L4": Peak(121e12, 300e9),
    "V100 SXM2": Peak(125e12, 900e9),
    "V100 PCIE": Peak(112e12, 900e9),
    "V100S PCIE": Peak(130e12, 1134e9),
    "RTX 4090": Peak(165.2e12, 1008e9),
    "RTX 3090": Peak(71e12, 936e9),
}
# No names of torch's. The 910's are the maker's (Hot Chips 31). Of the 910B there is no data sheet,
# and what is said of it differs (0.4 to 1.6 TB/s): FLOPs as verl counts them, bandwidth that of a
# die of the 910C (arXiv 2506.12708 section 3). Its estimate is the roughest.
_ASCEND = {"910": Peak(256e12, 1.2e12), "910B": Peak(354e12, 1.6e12)}
_SHORT = {"H100": "H100 HBM3", "H100 SXM": "H100 HBM3", "A100": "A100 SXM4", "V100": "V100 SXM2"}
_SHORT |= {"4090": "RTX 4090", "3090": "RTX 3090"}
# Makers, lines, sizes of memory.
_NO_PART_OF_A_NAME = re.compile(r"NVIDIA|TESLA|GEFORCE|ASCEND|\d+GB")


def peak_flops_of(device_name: str) -> float | None:
    """Return the half-precision FLOPs per second of a device by its whole name, as torch tells it.

    None for one that is not known, which a name that only begins like a known one's is, too.
    """
    peak = _PEAKS.get(_bare(device_name))
    return None if peak is None else peak.flops


def _bare(device_name: str) -> str:
    words = device_name.upper().replace("-", " ").split()
    return " ".join(word for word in words if not _NO_PART_OF_A_NAME.fullmatch(word))


def find_accelerator(name: str) -> tuple[str, Peak]:
    """Look an accelerator up by a name that people give it: h100, "A100 PCIe", 910b.

    Returns: its whole name, and its peak.
    Raises: ConfigError naming the nearest, and all there are.
    """
    known = _PEAKS | _ASCEND
    bare = _bare(name.replace("_", " "))
    whole = _SHORT.get(bare, bare)
    if whole not in known:
        raise ConfigError(
            f"The peak of '{name}' is not known here.{nearest(bare, [*known, *_SHORT])} There are "
            f"{', '.join(known)}."
        )
    return whole, known[whole]


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
