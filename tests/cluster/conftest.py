"""One control plane per session (and per xdist worker); a namespace per test."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import OPERATOR, ControlPlane, find_binaries
from katsura.testing.operators import World
from katsura_operator.kube import connect

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane that knows our kinds."""
    binaries = find_binaries(os.environ, PROJECT)
    if binaries is None:
        why = "no kube-apiserver and etcd: set KUBEBUILDER_ASSETS (`setup-envtest use 1.35 -p path`)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with ControlPlane(tmp_path_factory.mktemp("kube"), binaries) as made:
        made.install([yaml.safe_load(text) for text in files().values()])
        yield made


@pytest.fixture
def namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> str:
    """A namespace of this test's own."""
    plain = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].strip("-")
    made = plane.call("POST", "/api/v1/namespaces", {"metadata": {"generateName": f"{plain}-"}})
    return str(made["metadata"]["name"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs them all: a second control plane would cost more than it saves."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("cluster"))


@pytest.fixture
async def world(plane: ControlPlane, namespace: str) -> AsyncIterator[World]:
    """A namespace with an operator in it."""
    grant(plane, namespace)
    async with connect(str(plane.kubeconfig(operator=True))) as kube:
        yield World(plane, namespace, kube)


@pytest.fixture
async def make_world(plane: ControlPlane, namespace: str) -> AsyncIterator[Callable[[str], World]]:
    """Makes further namespaces, each with an operator of its own."""
    async with connect(str(plane.kubeconfig(operator=True))) as kube:

        def make(suffix: str) -> World:
            name = f"{suffix}-{namespace[-5:]}"
            plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            grant(plane, name)
            return World(plane, name, kube)

        yield make


def grant(plane: ControlPlane, namespace: str) -> None:
    """Bind the rights that the chart ships to the operator's user."""
    rules = yaml.safe_load((PROJECT / "charts" / "katsura" / "files" / "operator-rules.yaml").read_text())
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    subject = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": OPERATOR}
    for name, scope in (("served", "namespaced"), ("own", "own"), ("katsura-operator", "cluster")):
        wide = scope == "cluster"
        where = rbac if wide else f"{rbac}/namespaces/{namespace}"
        kind = "ClusterRole" if wide else "Role"
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": name}}
        plane.apply(f"{where}/{kind.lower()}s/{name}", {**head, "kind": kind, "rules": rules[scope]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
        binding = {**head, "kind": f"{kind}Binding", "roleRef": reference, "subjects": [subject]}
        plane.apply(f"{where}/{kind.lower()}bindings/{name}", binding)
