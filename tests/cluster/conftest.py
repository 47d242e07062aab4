"""One control plane per session (and per xdist worker); a namespace per test."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import yaml

from katsura.manifests.crds import files
from katsura.testing.kube import ControlPlane, find_binaries
from katsura.testing.operators import World, grant
from katsura_operator.kube import connect

PROJECT = Path(__file__).resolve().parents[2]
RULES = PROJECT / "charts" / "katsura" / "files" / "operator-rules.yaml"


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
    grant(plane, namespace, RULES)
    async with connect(str(plane.kubeconfig(operator=True))) as kube:
        yield World(plane, namespace, kube)


@pytest.fixture
async def make_world(plane: ControlPlane, namespace: str) -> AsyncIterator[Callable[[str], World]]:
    """Makes further namespaces, each with an operator of its own."""
    async with connect(str(plane.kubeconfig(operator=True))) as kube:

        def make(suffix: str) -> World:
            name = f"{suffix}-{namespace[-5:]}"
            plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            grant(plane, name, RULES)
            return World(plane, name, kube)

        yield make
