"""Which nodes a class of the plan is, in words that a scheduler understands.

Labels that all nodes of a class share, and no node of another class, name it best: a node that joins or comes back is
used without anybody writing a workload again. Where no labels tell classes apart, host names do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from katsura.placement.problem import NodeClass

_TELLING: Final = (
    "katsura.dev/node-class",
    "katsura.dev/domain",
    "node.kubernetes.io/instance-type",
    "nvidia.com/gpu.product",
    "amd.com/gpu.product-name",
    "topology.kubernetes.io/zone",
    "karpenter.sh/capacity-type",
    "kubernetes.io/arch",
)
_HOST: Final = "kubernetes.io/hostname"
Expressions = tuple[Mapping[str, Any], ...]


def expressions(
    classes: Sequence[NodeClass], nodes: Mapping[str, Mapping[str, str]], selectors: Iterable[Mapping[str, str]]
) -> dict[str, Expressions]:
    """Match expressions by class name; none where every node will do.

    Args:
        nodes: labels of observed nodes by name. selectors: of profiles; their labels are told first.
    """
    keys = [*dict.fromkeys([key for selector in selectors for key in sorted(selector)] + list(_TELLING))]
    made: dict[str, Expressions] = {}
    for entry in classes:
        inside = [nodes[n] for n in entry.nodes if n in nodes]
        outside = [nodes[n] for c in classes if c is not entry for n in c.nodes if n in nodes]
        shared = {k: inside[0][k] for k in keys if inside and len({n.get(k) for n in inside}) == 1 and k in inside[0]}
        if not outside:
            made[entry.name] = ()
        elif any(shared.items() <= dict(n).items() for n in outside):
            made[entry.name] = (_one(_HOST, [n.get(_HOST, name) for name, n in _named(entry, nodes)]),)
        else:
            made[entry.name] = tuple(_one(k, [v]) for k, v in sorted(shared.items()))
    return made


def selected(selector: Mapping[str, str]) -> Expressions:
    """Match expressions of a profile's selector: all that is known where nodes are not observed."""
    return tuple(_one(key, [value]) for key, value in sorted(selector.items()))


def _named(entry: NodeClass, nodes: Mapping[str, Mapping[str, str]]) -> list[tuple[str, Mapping[str, str]]]:
    return [(name, nodes[name]) for name in entry.nodes if name in nodes]


def _one(key: str, values: list[str]) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": sorted(values)}
