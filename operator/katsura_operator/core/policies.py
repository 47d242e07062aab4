"""NetworkPolicies of pods whose ports only a resource knows: external engines. The chart closes all other pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from katsura.manifests.kinds import ExternalEngine
from katsura_operator.core.objects import POOL, ROLE

CALLERS: Final = ("gateway", "router")
"""Roles of ours that may call an engine of somebody else's."""


def external_policy(pool: str, engine: ExternalEngine, dns: tuple[str, ...]) -> dict[str, Any]:
    """The `spec` of the policy of one external pool.

    Its pods are called on their port by the gateway, routers and `clients` of their namespace, by nobody else, and call
    DNS and what `egress` declares. `dns` (not empty): namespaces and CIDRs.
    """
    peers: list[dict[str, Any]] = [
        {"podSelector": {"matchExpressions": [{"key": ROLE, "operator": "In", "values": list(CALLERS)}]}}
    ]
    if engine.clients:
        peers.append({"podSelector": {"matchLabels": dict(engine.clients)}})
    out = [{"to": [_resolver(name) for name in dns], "ports": [_port(53, "UDP"), _port(53, "TCP")]}]
    out += [{"to": [{"ipBlock": {"cidr": way.cidr}}], "ports": [_port(way.port)]} for way in engine.egress]
    return {
        "podSelector": {"matchLabels": {POOL: pool}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": peers, "ports": [_port(engine.port)]}],
        "egress": out,
    }


def _resolver(name: str) -> Mapping[str, Any]:
    if "/" in name:
        return {"ipBlock": {"cidr": name}}
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"port": number, "protocol": protocol}
