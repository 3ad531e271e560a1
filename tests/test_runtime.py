"""What is known of devices by their names, as drivers tell them."""

from __future__ import annotations

import pytest

from vitbase.runtime import peak_flops_of


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-SXM4-40GB", 312),  # older drivers leave the maker out
        ("NVIDIA A40", 149.7),
        ("NVIDIA A30", 165),
        ("NVIDIA A10", 125),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_the_peak_of_a_device_is_that_of_its_whole_name(name, teraflops):
    assert peak_flops_of(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA",
        "NVIDIA H20",
        "NVIDIA H1000",
        "NVIDIA A10G",
        "NVIDIA A100X",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a seventh of the device
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA L20",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA RTX 6000 Ada Generation",
        "Tesla T4",
        "AMD Instinct MI300X",
    ],
)
def test_a_device_that_is_not_known_has_no_peak(name):
    assert peak_flops_of(name) is None
