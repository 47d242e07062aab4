from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.discovery import discovered, usable_nodes
from katsura_operator.core.snapshot import Snapshot

H100 = "NVIDIA H100 80GB HBM3"


def node(name: str, *, ready: bool = True, gpus: int = 0, **labels: str) -> dict[str, Any]:
    amounts = {"cpu": "8", "memory": "64Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    status = {"allocatable": amounts, "conditions": [{"type": "Ready", "status": str(ready)}]}
    return {"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": status}


def devices(on: str, product: str, count: int) -> dict[str, Any]:
    made = [{"name": f"d{i}", "attributes": {"productName": {"string": product}}} for i in range(count)]
    return {"kind": "ResourceSlice", "metadata": {"name": f"{on}-slice"}, "spec": {"nodeName": on, "devices": made}}


def profile(name: str, **spec: Any) -> dict[str, Any]:
    return {"kind": "AcceleratorProfile", "metadata": {"name": name}, "spec": spec}


NODES = (
    node("a"),
    node("b", gpus=4, **{"nvidia.com/gpu.product": "NVIDIA-L4"}),
    node("c", pool="fast"),
    node("gone", ready=False),
)
SLICES = (devices("a", H100, 2), devices("c", H100, 1), devices("gone", H100, 8))


@pytest.mark.parametrize(
    ("said", "nodes", "total"),
    [
        (profile("h100"), 2, 3),
        (profile("mine", device="H100"), 2, 3),
        (profile("l4"), 1, 4),
        (profile("h100", nodeSelector={"pool": "fast"}), 1, 1),
        (profile("h100", nodeSelector={"pool": "none"}), 0, 0),
        (profile("b200"), 0, 0),
        (profile("cpu"), 3, 24),
        (profile("ours", nodeSelector={"pool": "fast"}), 1, 1),
    ],
)
def test_devices_of_slices_and_of_device_plugins_are_found(said: dict[str, Any], nodes: int, total: int) -> None:
    seen = Snapshot({"Node": NODES, "ResourceSlice": SLICES}, "2026-11-21T12:00:00Z")
    assert discovered(said, usable_nodes(seen)) == (nodes, total)
