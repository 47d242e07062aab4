"""A reader of NetworkPolicies: which connections the rendered chart allows. Exactly those that the services make.

The semantics are those of networking.k8s.io/v1: a pod that no policy selects is open; one that some select may do what
any of them allows, per direction; a connection needs both ends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from chart_variants import VARIANTS

from katsura_operator.core import pods
from katsura_operator.core.desire import desire
from katsura_operator.core.placing import place, read
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

Documents = list[dict[str, Any]]
Render = Callable[..., Documents]


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod with labels in a namespace, or an address outside of the cluster's pods."""

    name: str
    namespace: str = "ns"
    labels: tuple[tuple[str, str], ...] = ()
    address: str = ""


def pod(role: str, namespace: str = "ns") -> Peer:
    return Peer(role, namespace, (("app.kubernetes.io/part-of", "katsura"), ("katsura.dev/role", role)))


ROLES = (
    "gateway",
    "operator",
    "memory",
    "router",
    "attention",
    "experts",
    "unified",
    "valkey",
    "purge",
    "test",
    "cleanup",
)
STRANGER = Peer("stranger", "elsewhere", (("app", "x"),))
NEIGHBOUR = Peer("neighbour", "ns", (("app", "x"),))
IMPOSTOR = pod("gateway", "elsewhere")
DNS = Peer("dns", "kube-system", (("k8s-app", "kube-dns"),))
OUTSIDE = Peer("outside", "", (), "203.0.113.7")
PEERS = (*map(pod, ROLES), STRANGER, NEIGHBOUR, DNS, OUTSIDE)
PORTS = (("TCP", 53), ("UDP", 53), *(("TCP", port) for port in (443, 6379, 6443, 8080, 9000, 9001, 9090, 9091)))

CALLS = {
    *((s, d, pods.GRPC) for s, d in (("gateway", "memory"), ("gateway", "router"))),
    *((s, d, pods.GRPC) for s in ("gateway", "operator") for d in ("attention", "unified")),
    ("operator", "experts", pods.GRPC),
    ("attention", "experts", pods.DATA),
}
STORE_USERS = {"gateway", "memory", "router", "attention", "experts", "unified", "purge", "test"}
API_USERS = {"operator", "test", "cleanup"}
OPEN = {"stranger", "neighbour", "dns", "outside"}
"""No policy of ours selects them: they may send wherever they are let in."""


def expected() -> set[tuple[str, str, str, int]]:
    """The table of docs/chart.md, written once more by hand."""
    said = {(s, d, "TCP", port) for s, d, port in CALLS}
    said |= {(user, "valkey", "TCP", 6379) for user in STORE_USERS}
    said |= {(s, "gateway", "TCP", 8080) for s in OPEN | {"test"}}
    said |= {(role, "dns", protocol, 53) for role in set(ROLES) - {"valkey"} for protocol in ("TCP", "UDP")}
    # The API server has no selector: its ports are open towards everybody who lets them in.
    return said | {(user, d, "TCP", port) for user in API_USERS for d in OPEN for port in (443, 6443)}


def labels_match(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", "the reader knows no other"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def peer_matches(rule: dict[str, Any], policy: dict[str, Any], peer: Peer) -> bool:
    if "ipBlock" in rule:
        return bool(peer.address) and ipaddress.ip_address(peer.address) in ipaddress.ip_network(
            rule["ipBlock"]["cidr"]
        )
    if peer.address:
        return False
    if "namespaceSelector" in rule:
        if not labels_match(rule["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != policy["metadata"]["namespace"]:
        return False
    return labels_match(rule.get("podSelector", {}), dict(peer.labels))


def direction_allows(policies: Documents, this: Peer, other: Peer, port: tuple[str, int], way: str, ends: str) -> bool:
    mine = [
        policy
        for policy in policies
        if not this.address
        and policy["metadata"]["namespace"] == this.namespace
        and labels_match(policy["spec"]["podSelector"], dict(this.labels))
        and way in policy["spec"]["policyTypes"]
    ]
    if not mine:
        return True
    for policy in mine:
        for rule in policy["spec"].get(way.lower(), ()):
            ports = [(p.get("protocol", "TCP"), p["port"]) for p in rule.get("ports", ())]
            if (not ports or port in ports) and (
                ends not in rule or any(peer_matches(r, policy, other) for r in rule[ends])
            ):
                return True
    return False


def allowed(
    documents: Documents, peers: tuple[Peer, ...] = PEERS, ports: tuple[tuple[str, int], ...] = PORTS
) -> set[tuple[str, str, str, int]]:
    """Every connection from or to a pod of ours that the policies let through."""
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    return {
        (source.name, target.name, *port)
        for source in peers
        for target in peers
        for port in ports
        if source is not target
        and (source.name in ROLES or target.name in ROLES)
        and direction_allows(policies, source, target, port, "Egress", "to")
        and direction_allows(policies, target, source, port, "Ingress", "from")
    }


def test_every_connection_that_services_need_is_allowed_and_no_other(render: Render) -> None:
    assert allowed(render()) == expected()


@pytest.mark.parametrize(
    "variant",
    ["ha", "openshift", "no-demo", "ingress", "http-route", "cert-manager", "monitored", "pinned", "own-data"],
)
def test_what_changes_nothing_for_the_network_opens_nothing(render: Render, variant: str) -> None:
    assert allowed(render(*VARIANTS[variant])) == expected()


NOW = "2026-11-21T12:00:00Z"


def resource(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "uid": name, "generation": 1, "resourceVersion": "1"}
    made = {"apiVersion": "katsura.dev/v1alpha1", "kind": kind, "spec": spec}
    return {**made, "metadata": {**metadata, "creationTimestamp": NOW}}


def made_by_the_operator(dns: tuple[str, ...] = (), **more: Any) -> Documents:
    """What it makes of a memory store and of an external engine."""
    external = {"image": "vllm:1", "port": 8000, "replicas": 1, **more}
    model = {"source": "file:///m"}
    seen = Snapshot(
        {
            "MemoryStore": (resource("MemoryStore", "default", {}),),
            "ModelDeployment": (
                resource("ModelDeployment", "theirs", {"model": model, "engine": "external"} | {"external": external}),
            ),
        },
        NOW,
    )
    reading = read(seen)
    settings = Settings("ns", "s", "e", dns=dns)
    return [dict(o) for o in desire(seen, reading, place(reading, seen, settings), settings, {}).keep]


def labels_by_role(made: Documents) -> dict[str, dict[str, str]]:
    """Labels of pods, by role."""
    templates = [o["spec"]["template"]["metadata"]["labels"] for o in made if o["kind"] == "Deployment"]
    return {labels["katsura.dev/role"]: labels for labels in templates}


def test_the_reader_s_pods_carry_the_labels_that_the_operator_gives() -> None:
    found = labels_by_role(made_by_the_operator())
    assert {"memory", "external"} == set(found)  # routers come with a model of ours
    assert dict(pod("memory").labels).items() <= found["memory"].items()


CLIENT = Peer("client", "ns", (("app", "notebook"),))
ENGINE_PORTS = (("TCP", 8000), ("TCP", 8001), ("TCP", 443), ("TCP", 80), ("UDP", 53), ("TCP", 53))


def around_an_engine(documents: Documents, made: Documents) -> tuple[set[str], set[tuple[str, str, int]]]:
    """Who reaches an external engine on its port (and nobody on another), and what it reaches."""
    policies = [d for d in (*documents, *made) if d["kind"] == "NetworkPolicy"]
    engine = Peer("external", "ns", tuple(labels_by_role(made)["external"].items()))
    peers = (*PEERS, CLIENT, IMPOSTOR)
    inward = {
        (peer.name + "@" + peer.namespace, port[1])
        for peer in peers
        for port in ENGINE_PORTS
        if direction_allows(policies, engine, peer, port, "Ingress", "from")
    }
    outward = {
        (peer.name, *port)
        for peer in peers
        for port in ENGINE_PORTS
        if direction_allows(policies, engine, peer, port, "Egress", "to")
    }
    assert {port for _, port in inward} <= {8000}
    return {name for name, _ in inward}, outward


def test_an_external_engine_is_called_by_gateway_and_routers_alone_and_calls_dns(render: Render) -> None:
    inward, outward = around_an_engine(render(), made_by_the_operator(("kube-system",)))
    assert inward == {"gateway@ns", "router@ns"}
    assert outward == {("dns", "UDP", 53), ("dns", "TCP", 53)}


def test_what_an_external_engine_declares_is_opened_and_no_more(render: Render) -> None:
    said = {"clients": {"app": "notebook"}, "egress": [{"cidr": "203.0.113.0/24"}]}
    inward, outward = around_an_engine(render(), made_by_the_operator(("kube-system", "10.0.0.10/32"), **said))
    assert inward == {"gateway@ns", "router@ns", "client@ns"}
    assert outward == {("dns", "UDP", 53), ("dns", "TCP", 53), ("outside", "TCP", 443)}


def test_without_policies_external_engines_have_none_either(render: Render) -> None:
    def told(*values: str) -> str:
        operator = next(
            d for d in render(*values) if (d["kind"], d["metadata"]["name"]) == ("Deployment", "katsura-operator")
        )
        env = operator["spec"]["template"]["spec"]["containers"][0]["env"]
        return next((e["value"] for e in env if e["name"] == "KATSURA_OPERATOR_DNS"), "")

    assert told() == "kube-system"
    assert told('networkPolicy.dns.cidrs=["169.254.20.10/32"]') == "kube-system,169.254.20.10/32"
    assert told("networkPolicy.enabled=false") == ""
    assert not [o for o in made_by_the_operator() if o["kind"] == "NetworkPolicy"]


def test_without_policies_the_reader_finds_everything_open(render: Render) -> None:
    found = allowed(render("networkPolicy.enabled=false"))
    assert ("stranger", "valkey", "TCP", 6379) in found
    assert len(found) > 5 * len(expected())


def test_a_pod_that_calls_itself_ours_in_another_namespace_gets_nowhere(render: Render) -> None:
    peers = (IMPOSTOR, *(pod(role) for role in ROLES if role != "gateway"))
    assert not {c for c in allowed(render(), peers) if c[0] == "gateway"}


def test_a_store_of_yours_is_the_only_new_way_out(render: Render) -> None:
    found = allowed(
        render("store.url=redis://r:6379", "valkey.enabled=false", 'networkPolicy.store.cidrs=["203.0.113.0/24"]')
    )
    ports = {(user, "outside", "TCP", port) for user in STORE_USERS for port in (6379, 6380) if ("TCP", port) in PORTS}
    without_valkey = {c for c in expected() if c[1] != "valkey"}
    assert {c for c in found if "valkey" not in c[:2]} == without_valkey | ports


def test_an_operator_of_another_namespace_is_let_in_from_there_only(render: Render) -> None:
    documents = render("operator.enabled=false", "operator.namespace=platform")
    shards = tuple(pod(role) for role in ("attention", "experts", "unified"))
    calls = {("operator", role, "TCP", pods.GRPC) for role in ("attention", "experts", "unified")}
    policies = [d for d in documents if d["kind"] == "NetworkPolicy"]
    inward = {
        (role.name, namespace)
        for role in shards
        for namespace in ("platform", "ns", "elsewhere")
        if direction_allows(policies, role, pod("operator", namespace), ("TCP", pods.GRPC), "Ingress", "from")
    }
    assert inward == {(role, "platform") for _, role, _, _ in calls}


def test_spans_are_the_only_new_way_out_of_whoever_makes_them(render: Render) -> None:
    collector = Peer("collector", "monitoring", (("app", "collector"),))
    ports = (*PORTS, ("TCP", 4317))
    opened = allowed(render(*VARIANTS["traced"]), (*PEERS, collector), ports) - allowed(
        render(), (*PEERS, collector), ports
    )
    traced = set(ROLES) - {"valkey", "purge", "test", "cleanup"}
    assert opened == {(role, to, "TCP", 4317) for role in traced for to in OPEN | {"collector"}}


@pytest.mark.parametrize(("value", "opened"), [("metricsFrom", 9090), ("gatewayFrom", 8080)])
def test_who_may_scrape_or_ask_can_be_named(render: Render, value: str, opened: int) -> None:
    peer = '[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"elsewhere"}}}]'
    changed = allowed(render(f"networkPolicy.{value}={peer}")) ^ expected()
    if value == "metricsFrom":
        scraped = {(role, pods.METRICS) for role in ("memory", "router", "attention", "experts", "unified")}
        assert changed == {("stranger", role, "TCP", port) for role, port in scraped | {("operator", pods.HEALTH)}}
    else:
        assert changed == {(name, "gateway", "TCP", opened) for name in OPEN - {"stranger"}}
