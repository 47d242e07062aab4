from __future__ import annotations

from typing import Any

import pytest

from katsura.cli.core import cluster_checks as checks
from katsura.cli.core.checks import Verdict
from katsura.manifests.crds import crd, definitions

WANTED = [crd(entry) for entry in definitions()]


def thing(status: str = "True", message: str = "", seen: int = 1, *more: dict[str, Any]) -> dict[str, Any]:
    ready = {"type": "Ready", "status": status, "reason": "Because", "message": message, "observedGeneration": seen}
    metadata = {"name": "chat", "namespace": "n", "generation": 1}
    return {"kind": "ModelDeployment", "metadata": metadata, "status": {"conditions": [ready, *more]}}


def test_a_server_that_is_not_there_says_where_to_look() -> None:
    found = checks.server(None, "connection refused")
    assert (found.verdict, found.what) == (Verdict.BAD, "connection refused")


@pytest.mark.parametrize(("minor", "verdict"), [("27", Verdict.BAD), ("28+", Verdict.GOOD), ("35", Verdict.GOOD)])
def test_a_server_that_is_too_old_is_told(minor: str, verdict: Verdict) -> None:
    assert checks.server({"serverVersion": {"major": "1", "minor": minor}}, "").verdict is verdict


def test_definitions_are_missing_old_or_of_this_version() -> None:
    assert next(checks.definitions(WANTED[1:], WANTED)).verdict is Verdict.BAD
    old = [*WANTED[1:], {**WANTED[0], "spec": {**WANTED[0]["spec"], "versions": []}}]
    found = next(checks.definitions(old, WANTED))
    assert (found.verdict, "--server-side" in found.mend) == (Verdict.WARN, True)
    assert next(checks.definitions(WANTED, WANTED)).verdict is Verdict.GOOD


def test_a_workload_is_absent_short_or_ready() -> None:
    def deployment(ready: int) -> dict[str, Any]:
        metadata = {"name": "g", "namespace": "n"}
        return {"metadata": metadata, "spec": {"replicas": 2}, "status": {"readyReplicas": ready}}

    assert checks.workload("gateway", [], "install it").mend == "install it"
    assert checks.workload("gateway", [deployment(1)], "").verdict is Verdict.BAD
    assert checks.workload("gateway", [deployment(2)], "").verdict is Verdict.GOOD


def test_a_leader_is_named_and_a_silent_one_is_told() -> None:
    lease = {"spec": {"holderIdentity": "one"}}
    assert checks.election(None, None).verdict is Verdict.BAD
    assert checks.election(lease, 300.0).verdict is Verdict.BAD
    assert checks.election(lease, 2.0).what == "one leads"


def test_a_resource_speaks_by_its_ready_condition() -> None:
    assert checks.resource(thing()).verdict is Verdict.GOOD
    assert checks.resource(thing("False", "0/1")).what == "Because: 0/1"
    assert checks.resource(thing(seen=0)).verdict is Verdict.WARN
    assert checks.resource({**thing(), "status": {}}).verdict is Verdict.WARN
    degraded = {"type": "Degraded", "status": "True", "reason": "FewerThanAsked", "message": "1 of 2"}
    assert "1 of 2" in checks.resource(thing("True", "", 1, degraded)).what
