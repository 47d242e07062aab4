"""Every status with which an API server refuses, by a real one, as the operator's door hands it on."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.manifests.kinds import API_VERSION
from katsura.testing.kube import ControlPlane
from katsura_operator import kube as door_module
from katsura_operator.core.objects import AGENT, POD
from katsura_operator.kube import Kube, connect


@pytest.fixture
async def door(plane: ControlPlane) -> AsyncIterator[Kube]:
    """A door that may do everything."""
    async with connect(str(plane.kubeconfig())) as made:
        yield made


def agent(namespace: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "a", "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "Agent", "metadata": metadata, "spec": spec}


def pod(namespace: str) -> dict[str, Any]:
    container = {"name": "c", "image": "i"}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": spec}


def changed(path: Path, folder: Path, change: Callable[[Any], None]) -> str:
    """A copy of a kubeconfig that says something else."""
    said = json.loads(path.read_text())
    change(said)
    (folder / "kubeconfig").write_text(json.dumps(said))
    return str(folder / "kubeconfig")


def aged(token: str) -> str:
    """Where a list was to go on, as of the first state that the server ever had."""
    said = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    return base64.urlsafe_b64encode(json.dumps({**said, "rv": 1}).encode()).decode().rstrip("=")


async def test_401_and_403_are_a_lack_of_rights(plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    def forget(said: Any) -> None:
        said["users"][0]["user"]["token"] = "nobody"

    for config in (str(plane.kubeconfig(operator=True)), changed(plane.kubeconfig(), tmp_path, forget)):
        async with connect(config) as stranger:
            with pytest.raises(PermissionDeniedError, match=r"cannot list resource|Unauthorized"):
                await stranger.list_all(AGENT, namespace)


async def test_404_is_nothing_to_a_reader_and_an_error_to_a_writer(door: Kube, namespace: str) -> None:
    assert await door.get(AGENT, namespace, "a") is None
    gone = agent(namespace)
    gone["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    await door.delete(gone)
    with pytest.raises(NotFoundError, match="not found"):
        await door.annotate(gone, {"a": "b"})


async def test_409_tells_what_exists_from_what_has_changed(door: Kube, namespace: str) -> None:
    body = agent(namespace, modelRef={"name": "m"})
    seen = await door.create(body)
    with pytest.raises(AlreadyExistsError, match="already exists"):
        await door.create(body)
    await door.annotate(seen, {"a": "b"})
    for write in (door.replace(seen), door.annotate(seen, {"a": "c"}), door.delete(seen)):
        with pytest.raises(ConflictError):
            await write
    body["metadata"] |= {"name": "b", "uid": "of-an-earlier-life"}
    with pytest.raises(ConflictError, match=r"(?i)uid"):
        await door.apply(body)


async def test_410_in_the_middle_of_a_list_begins_it_again(
    plane: ControlPlane, door: Kube, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        body = agent(namespace, modelRef={"name": "m"})
        await door.create({**body, "metadata": {**body["metadata"], "name": name}})
    plane.forget_history()
    monkeypatch.setattr(door_module, "_PAGE", 1)
    asked = door._ask
    answers: list[int] = []

    async def slow(method: str, path: str, query: dict[str, str]) -> Any:
        late = "continue" in query and 410 not in answers
        try:
            made = await asked(method, path, query | ({"continue": aged(query["continue"])} if late else {}))
        except ConflictError:
            answers.append(410)
            raise
        answers.append(200)
        return made

    monkeypatch.setattr(door, "_ask", slow)
    assert [o["metadata"]["name"] for o in await door.list_all(AGENT, namespace)] == ["a", "b", "c"]
    assert answers == [200, 410, 200, 200, 200]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
async def test_400_405_413_415_and_422_are_a_fault_of_ours(door: Kube, namespace: str) -> None:
    body = agent(namespace, modelRef={"name": "m"})
    wrong: list[tuple[str, str, Any, str]] = [
        ("POST", AGENT.path("default"), body, "application/json"),  # another namespace than it says: 400
        ("PATCH", AGENT.path(namespace), body, "application/merge-patch+json"),  # 405
        ("POST", AGENT.path(namespace), {**body, "spec": {"x": "y" * (4 << 20)}}, "application/json"),  # 413
        ("PATCH", AGENT.path(namespace, "a"), body, "application/json"),  # 415
        ("POST", AGENT.path(namespace), agent(namespace), "application/json"),  # without a model: 422
    ]
    for method, where, content, kind in wrong:
        with pytest.raises(InvalidArgumentError):
            await door._ask(method, where, None, content, kind)


async def test_429_comes_with_the_servers_delay(door: Kube, plane: ControlPlane, namespace: str) -> None:
    await door.create(pod(namespace))
    running = {"status": {"phase": "Running"}}
    plane.call("PATCH", f"{POD.path(namespace, 'p')}/status", running, kind="application/merge-patch+json")
    budget = {"metadata": {"name": "b"}, "spec": {"maxUnavailable": 0, "selector": {}}}
    plane.call("POST", f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets", budget)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p", "namespace": namespace}}
    with pytest.raises(ResourceExhaustedError, match="budget") as refused:
        await door._ask("POST", f"{POD.path(namespace, 'p')}/eviction", None, eviction)
    assert (refused.value.retry_after_s or 0) > 0


async def test_503_504_and_no_answer_mean_that_it_may_be_asked_again(
    door: Kube, plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    service = {"name": "nobody", "namespace": namespace}
    spec = {"group": "gone.example", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1}
    made = {"metadata": {"name": "v1.gone.example"}, "spec": {**spec, "service": service}}
    group = "/apis/apiregistration.k8s.io/v1/apiservices"
    plane.call("POST", group, made)
    later = {"resourceVersion": str(2**60), "resourceVersionMatch": "NotOlderThan"}
    try:
        for path, query in (("/apis/gone.example/v1/things", {}), (AGENT.path(namespace), later)):
            with pytest.raises(UnavailableError):
                await door._ask("GET", path, query)
    finally:
        plane.call("DELETE", f"{group}/v1.gone.example")

    def mislead(said: Any) -> None:
        said["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"

    async with connect(changed(plane.kubeconfig(), tmp_path, mislead)) as nowhere:
        with pytest.raises(UnavailableError, match="the API server does not answer"):
            await nowhere.list_all(AGENT, namespace)
