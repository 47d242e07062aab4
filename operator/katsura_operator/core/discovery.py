"""Which nodes have what a profile speaks of: by its selector, else by what nodes and their DRA devices say they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from katsura.manifests.bundle import Bundle
from katsura.manifests.cluster import ClusterNode, observe
from katsura.placement import catalogue
from katsura.placement.catalogue import Device
from katsura_operator.core.objects import NODE, SLICE, Object, name_of
from katsura_operator.core.snapshot import Snapshot


def usable_nodes(seen: Snapshot) -> tuple[ClusterNode, ...]:
    """Nodes that plans may use, with the devices that ResourceSlices publish for them."""
    return observe(Bundle((), (), (), ()), seen.of(NODE), seen.of(SLICE)).nodes


def discovered(profile: Object, nodes: Iterable[ClusterNode]) -> tuple[int, int]:
    """Nodes that have the profile's device, and accelerators (of a CPU: cores) on them all."""
    known = catalogue.built_in()
    said = str(profile["spec"].get("device") or name_of(profile)).lower()
    device = next((d for d in known.devices.values() if d.name.lower() == said), None)
    selector: Mapping[str, str] = profile["spec"].get("nodeSelector") or {}
    resource = str(profile["spec"].get("resource") or (device.resource if device else ""))
    counts = [
        _count(node, device, resource)
        for node in nodes
        if (selector.items() <= dict(node.labels).items() if selector else said in _names(node))
    ]
    return len(counts), sum(counts)


def _count(node: ClusterNode, device: Device | None, resource: str) -> int:
    if device is not None and device.is_cpu:
        return int(node.cores)
    return node.resources.get(resource, 0) or len(node.products)


def _names(node: ClusterNode) -> Sequence[str]:
    """What the catalogue calls this node's accelerators and its cores."""
    known = catalogue.built_in()
    found = known.identify(node.labels, node.resources, node.products)
    accelerator = (found.device.name.lower(),) if found and found.device else ()
    return (*accelerator, known.cpu(node.labels).name.lower())
