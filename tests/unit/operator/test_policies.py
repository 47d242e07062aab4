"""An external engine is called by whom it must be, and calls what it says: tests/meta reads what this allows."""

from __future__ import annotations

from katsura.manifests.kinds import Egress, ExternalEngine
from katsura_operator.core.policies import external_policy

ENGINE = ExternalEngine("vllm:1", port=8123)


def test_it_is_open_on_its_port_to_roles_of_its_namespace() -> None:
    made = external_policy("chat-external", ENGINE, ("kube-system",))
    assert made["podSelector"] == {"matchLabels": {"katsura.dev/pool": "chat-external"}}
    assert made["policyTypes"] == ["Ingress", "Egress"]
    (way,) = made["ingress"]
    assert way["ports"] == [{"port": 8123, "protocol": "TCP"}]
    (peer,) = way["from"]
    assert set(peer) == {"podSelector"}, "of its own namespace"
    assert peer["podSelector"]["matchExpressions"][0]["values"] == ["gateway", "router"]


def test_dns_is_a_namespace_or_an_address_and_the_only_way_out_without_a_word() -> None:
    (way,) = external_policy("p", ENGINE, ("kube-system", "169.254.20.10/32"))["egress"]
    assert way["to"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}},
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ]
    assert {(p["port"], p["protocol"]) for p in way["ports"]} == {(53, "UDP"), (53, "TCP")}


def test_clients_and_ways_out_are_those_that_are_declared() -> None:
    said = ExternalEngine("vllm:1", clients={"app": "notebook"}, egress=(Egress("203.0.113.0/24", 8443),))
    made = external_policy("p", said, ("kube-system",))
    assert made["ingress"][0]["from"][1] == {"podSelector": {"matchLabels": {"app": "notebook"}}}
    assert made["egress"][1:] == [
        {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 8443, "protocol": "TCP"}]}
    ]
