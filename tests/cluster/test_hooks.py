"""The chart's hooks around deletion, against a real API server: they end, and say why where they could not work."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from katsura.testing.operators import World

FILE = Path(__file__).parents[2] / "charts" / "katsura" / "files" / "hooks.py"
RELEASED = {"app.kubernetes.io/instance": "release", "app.kubernetes.io/managed-by": "Helm"}


@pytest.fixture
def hooks(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The hooks as they run in a pod of the namespace."""
    said = yaml.safe_load(world.plane.kubeconfig().read_text())
    (tmp_path / "token").write_text(said["users"][0]["user"]["token"])
    (tmp_path / "ca.crt").write_bytes(world.plane.authority.read_bytes())
    host, _, port = world.plane.server.removeprefix("https://").rpartition(":")
    told = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "SECONDS_MAX": "0"}
    for name, value in {**told, "NAMESPACE": world.namespace, "RELEASE": "release"}.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("hooks", FILE)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    monkeypatch.setattr(made, "ACCOUNT", tmp_path)
    return made


@pytest.fixture
def api(hooks: Any) -> Iterator[Any]:
    """Their door to the API server."""
    with hooks.Api() as made:
        yield made


def release(world: World, name: str, spec: dict[str, Any], labels: dict[str, str]) -> None:
    path = f"/apis/katsura.dev/v1alpha1/namespaces/{world.namespace}/memorystores/{name}"
    metadata = {"name": name, "labels": labels}
    body = {"apiVersion": "katsura.dev/v1alpha1", "kind": "MemoryStore", "metadata": metadata, "spec": spec}
    world.plane.apply(path, body)


def stores(world: World) -> list[str]:
    return [o["metadata"]["name"] for o in world.all("MemoryStore")]


async def test_uninstalling_deletes_what_is_the_releases_and_nothing_else(world: World, hooks: Any, api: Any) -> None:
    release(world, "default", {}, RELEASED)
    release(world, "mine", {}, {})
    await world.settle()
    hooks.pre_delete(api)
    assert stores(world) == ["mine"]


async def test_uninstalling_does_not_hang_on_a_store_that_cannot_be_purged(
    world: World, hooks: Any, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    release(world, "default", {"deletionPolicy": "Delete"}, RELEASED)
    await world.settle()
    world.job_trouble = "the store does not answer"
    with pytest.raises(SystemExit, match="is the operator running"):
        hooks.pre_delete(api)
    await world.settle()
    with pytest.raises(SystemExit, match=r"deletionPolicy\":\"Retain.* and `helm uninstall` again"):
        hooks.pre_delete(api)
    assert "PurgeBlocked: default-purge-" in capsys.readouterr().out
    world.job_trouble = ""
    await world.settle()
    hooks.pre_delete(api)
    assert stores(world) == []


async def test_a_store_that_stays_behind_without_an_operator_is_named_with_its_way_out(
    world: World, hooks: Any, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    release(world, "mine", {"deletionPolicy": "Delete"}, {})
    await world.settle()
    hooks.post_delete(api)
    said = capsys.readouterr().out
    assert "kept, with what the operator made: memorystores/mine" in said
    assert world.all("Deployment")
    world.delete("MemoryStore", "mine")
    (command,) = (line for line in said.splitlines() if "kubectl" in line)
    world.plane.kubectl(*shlex.split(command)[1:])
    assert stores(world) == []


async def test_nothing_that_the_operator_made_is_left_behind(world: World, hooks: Any, api: Any) -> None:
    release(world, "default", {"deletionPolicy": "Delete"}, RELEASED)
    await world.settle()
    world.job_trouble = "not yet"
    world.delete("MemoryStore", "default")
    await world.settle()
    assert world.all("Job")
    path = f"/apis/katsura.dev/v1alpha1/namespaces/{world.namespace}/memorystores/default"
    world.plane.call("PATCH", path, {"metadata": {"finalizers": None}}, kind="application/merge-patch+json")
    hooks.post_delete(api)
    kinds = ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "Job", "RolePool", "PlacementPlan")
    assert [kind for kind in kinds if world.all(kind)] == []
