"""Which nodes a class of the plan is, in words that a scheduler understands, and in as few of them as will do.

A plan tells nodes apart by what is free on them, which changes all the time; pods must not restart for that. So only
kinds of nodes are told apart (device, domain, spot), and each by the same words whoever else is there: labels of
profiles and of devices first, zones and instance types where those do not do, host names where no label does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from katsura.placement.problem import NodeClass

_DEVICE: Final = ("katsura.dev/node-class", "nvidia.com/gpu.product", "amd.com/gpu.product-name")
_PLACE: Final = ("katsura.dev/domain", "topology.kubernetes.io/zone", "karpenter.sh/capacity-type")
_MACHINE: Final = ("node.kubernetes.io/instance-type", "kubernetes.io/arch")
_HOST: Final = "kubernetes.io/hostname"
Labels = Mapping[str, str]
Expressions = tuple[Mapping[str, Any], ...]


def expressions(
    classes: Sequence[NodeClass], nodes: Mapping[str, Labels], selectors: Iterable[Labels]
) -> dict[str, Expressions]:
    """Match expressions by class name; none where every node will do.

    Args:
        nodes: labels of observed nodes by name. selectors: of profiles; their labels are told first.
    """
    told = tuple(dict.fromkeys(key for selector in selectors for key in sorted(selector)))
    tiers = [told + _DEVICE, told + _DEVICE + _PLACE, told + _DEVICE + _PLACE + _MACHINE]
    made: dict[str, Expressions] = {}
    for entry in classes:
        same = [n for c in classes if kind_of(c) == kind_of(entry) for n in c.nodes if n in nodes]
        inside = [nodes[n] for n in same]
        outside = [nodes[n] for c in classes if kind_of(c) != kind_of(entry) for n in c.nodes if n in nodes]
        found = (_shared(tier, inside) for tier in tiers)
        words = next((w for w in found if not any(w.items() <= dict(n).items() for n in outside)), None)
        if words is None:
            made[entry.name] = (_one(_HOST, [nodes[n].get(_HOST, n) for n in same]),)
        else:
            made[entry.name] = tuple(_one(key, [value]) for key, value in sorted(words.items()))
    return made


def kind_of(entry: NodeClass) -> tuple[object, ...]:
    """What makes nodes different for good: not how much of them is free."""
    return (entry.device or entry.core).name, entry.accelerators, entry.domain, entry.spot


def selected(selector: Labels) -> Expressions:
    """Match expressions of a profile's selector: all that is known where nodes are not observed."""
    return tuple(_one(key, [value]) for key, value in sorted(selector.items()))


def _shared(keys: Sequence[str], inside: Sequence[Labels]) -> dict[str, str]:
    """Labels with these keys that all nodes have, with one value."""
    return {k: inside[0][k] for k in keys if inside and k in inside[0] and len({n.get(k) for n in inside}) == 1}


def _one(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(values)}
