from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.catalogue import built_in

GPU = {"nvidia.com/gpu": 8}


@pytest.mark.parametrize(
    ("labels", "resources", "products", "device"),
    [
        ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, GPU, (), "H100"),
        ({"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}, {"amd.com/gpu": 8}, (), "MI300X"),
        ({"feature.node.kubernetes.io/pci-0302_10de_27b8.present": "true"}, GPU, (), "L4"),
        ({}, {}, ("NVIDIA H200",), "H200"),
        ({"nvidia.com/gpu.product": "NVIDIA-L4"}, GPU, ("NVIDIA H200",), "H200"),
    ],
)
def test_a_node_is_known_by_dra_vendor_label_or_pci(
    labels: dict[str, str], resources: dict[str, int], products: tuple[str, ...], device: str
) -> None:
    found = built_in().identify(labels, resources, products)
    assert found is not None
    assert found.device is not None
    assert found.device.name == device


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({}, "no label says which product"),
        ({"nvidia.com/gpu.product": "NVIDIA-FUTURE-9000"}, "has no nvidia.com/gpu.product=NVIDIA-FUTURE-9000"),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-SHARED"}, "shared or partitioned"),
        ({"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-3g.40gb"}, "shared or partitioned"),
    ],
)
def test_what_nobody_names_stays_unknown_and_says_why(labels: dict[str, str], said: str) -> None:
    found = built_in().identify(labels, GPU)
    assert found is not None
    assert found.device is None
    assert found.count == 8
    assert said in found.why


def test_a_node_without_accelerators_has_cores_of_its_kind() -> None:
    assert built_in().identify({}, {"cpu": 8}) is None
    assert built_in().cpu({"feature.node.kubernetes.io/cpu-cpuid.AMXBF16": "true"}).name == "cpu-amx"
    assert built_in().cpu({}).name == "cpu"


def test_every_figure_has_a_source_a_date_and_no_sparse_flops() -> None:
    devices = built_in().devices
    assert all(d.source and d.date for d in devices.values())
    assert devices["H100"].teraflops["bf16"] < 1000
    for device in devices.values():
        if device.hourly_range and device.hourly_usd:
            assert device.hourly_range[0] <= device.hourly_usd <= device.hourly_range[1]


def test_a_missing_narrow_arithmetic_runs_as_the_next_wider_one() -> None:
    a100 = built_in().named("A100-80")
    assert a100.flops("fp8") == a100.flops("bf16") == 312e12
    with pytest.raises(InvalidArgumentError, match="known: T4"):
        built_in().named("B9000")
