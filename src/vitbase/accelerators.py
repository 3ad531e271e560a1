"""What accelerators can do at their best, by the names that they go by."""

from __future__ import annotations

import re

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
