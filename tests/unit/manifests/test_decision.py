from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import FailedPreconditionError
from katsura.manifests.bundle import read_manifests
from katsura.manifests.cluster import ROLE_LABEL
from katsura.manifests.decision import Decision, Situation, decide, pools, state
from katsura.placement.document import Current, inputs_hash, running
from katsura.placement.patterns import Memo
from katsura.placement.problem import Effort

HEAD = "apiVersion: katsura.dev/v1alpha1\n"
CHAT = (
    HEAD
    + """\
kind: ModelDeployment
metadata: {name: chat}
spec:
  model: {source: file:///m, card: Qwen/Qwen3-8B}
  dtype: bf16
  topology: Unified
  kv: {bytes: 8Gi}
  traffic: {requestsPerSecond: 2}
---
"""
)
UNKNOWN = HEAD + "kind: ModelDeployment\nmetadata: {name: odd}\nspec: {model: {source: file:///odd}}\n---\n"
STORE = HEAD + "kind: MemoryStore\nmetadata: {name: trees}\nspec: {}\n---\n"
EXACT = Effort(gap=0.0, seconds=None)


def node(name: str, count: int = 2) -> dict[str, object]:
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        "status": {"allocatable": {"cpu": "16", "memory": "64Gi", "nvidia.com/gpu": str(count)}},
    }


def pod(on: str, labels: dict[str, str], **requests: str) -> dict[str, object]:
    asked = {"nvidia.com/gpu" if k == "gpu" else k: v for k, v in requests.items()}
    container = {"resources": {"requests": asked}}
    return {"metadata": {"labels": labels}, "spec": {"nodeName": on, "containers": [container]}, "status": {}}


def decided(situation: Situation) -> Decision:
    return decide(situation, EXACT)


def test_objects_of_the_api_server_become_pools_with_their_nodes() -> None:
    found = decided(Situation(read_manifests([("m", CHAT + STORE)]), [node("n1"), node("n2")]))
    assert {(p.owner, p.role) for p in found.pools} == {("chat", "unified"), ("chat", "router"), ("trees", "memory")}
    (model,) = (p for p in found.pools if p.role == "unified")
    assert (model.device, model.resource, model.instance.count("chat/Unified")) == ("L4", "nvidia.com/gpu", 1)
    assert sum(model.nodes.values()) == model.processes
    assert set(model.nodes) <= {"n1", "n2"}
    assert [s.action for s in found.change.steps] == ["start"] * len(found.change.plan.instances)
    assert found.document["status"]["gap"] >= 0


def test_what_stands_is_kept_where_nothing_changed() -> None:
    situation = Situation(read_manifests([("m", CHAT + STORE)]), [node("n1"), node("n2")])
    first = decided(situation)
    again = decided(Situation(situation.bundle, situation.nodes, current=first.document))
    assert again.change.kept
    assert again.change.steps == ()
    assert again.pools == first.pools


def test_models_of_a_late_agent_are_held_to_shorter_times_and_stay_so() -> None:
    head = HEAD + "kind: Agent\nmetadata: {name: a}\nspec:\n  modelRef: {name: chat}\n  flow:\n"
    flow = "    runsPerSecond: 1\n    calls: [{name: ask, outputTokens: 400}]\n"
    free = situation(CHAT + head + flow)
    path_s = decided(free).document["status"]["agents"][0]["longestPathSeconds"]
    limit = int(0.9 * path_s)
    asked = situation(CHAT + head + flow + f"    seconds: {limit}\n")
    first = decided(asked)
    (agent,) = first.document["status"]["agents"]
    assert agent["kept"]
    assert agent["longestPathSeconds"] <= limit < path_s
    problem, _ = state(asked)
    assert first.document["spec"]["inputsHash"] == inputs_hash(problem)  # who asks again needs no new plan
    again = decided(replace(asked, current=first.document))
    assert again.change.kept
    assert again.document["status"]["agents"][0]["kept"]


def situation(text: str) -> Situation:
    return Situation(read_manifests([("m", text)]), [node(f"n{i}", 4) for i in range(6)])


def test_what_others_run_is_not_free_and_what_we_run_is() -> None:
    bundle = read_manifests([("m", CHAT)])
    others = [pod("n1", {}, gpu="2", cpu="1500m")]
    found = decided(Situation(bundle, [node("n1"), node("n2")], pods=others))
    assert {n for p in found.pools if p.accelerators for n in p.nodes} == {"n2"}
    ours = [pod("n1", {ROLE_LABEL: "unified"}, gpu="2"), pod("n2", {ROLE_LABEL: "unified"}, gpu="2")]
    assert decided(Situation(bundle, [node("n1"), node("n2")], pods=ours)).change.plan.feasible


@pytest.mark.parametrize(("allocatable", "taken"), [("4", "3500m"), ("4", "4"), ("500m", "")])
def test_a_kind_of_node_without_a_free_core_is_left_alone(allocatable: str, taken: str) -> None:
    full = {
        "metadata": {"name": "full", "labels": {}},
        "status": {"allocatable": {"cpu": allocatable, "memory": "64Gi"}},
    }
    bundle = read_manifests([("m", CHAT.replace("  topology: Unified\n", ""))])
    found = decided(Situation(bundle, [node("n1"), full], pods=[pod("full", {}, cpu=taken)] if taken else []))
    assert {name for p in found.pools for name in p.nodes} == {"n1"}
    said = [entry for entry in found.problem.unknown if entry.startswith("full:")]
    assert said == (["full: others have taken its cores or its memory"] if taken else [])


def test_a_model_may_be_called_as_the_helper_of_another() -> None:
    named = CHAT.replace("name: chat}", "name: chat-router}") + CHAT.replace("name: chat}", "name: trees-memory}")
    found = decided(Situation(read_manifests([("m", CHAT + named + STORE)]), [node(f"n{i}", 4) for i in range(4)]))
    assert found.change.plan.feasible
    owned = sorted((p.owner, p.role) for p in found.pools)
    models = ["chat", "chat-router", "trees-memory"]
    assert owned == sorted([*((m, r) for m in models for r in ("router", "unified")), ("trees", "memory")])


def test_accelerators_without_a_free_core_are_left_alone() -> None:
    asked = Situation(read_manifests([("m", CHAT)]), [node("n1"), node("n2")], pods=[pod("n1", {}, cpu="16")])
    assert {name for p in decided(asked).pools for name in p.nodes} == {"n2"}


def test_a_memo_of_earlier_decisions_changes_none() -> None:
    memo = Memo()
    for traffic, taken in (("2", "1"), ("3", "1"), ("3", "9"), ("2", "1")):
        bundle = read_manifests([("m", CHAT.replace("Second: 2", f"Second: {traffic}") + STORE)])
        asked = Situation(bundle, [node("n1"), node("n2")], pods=[pod("n1", {}, cpu=taken)])
        with_memo, without = decide(asked, EXACT, memo=memo), decide(asked, EXACT)
        assert with_memo.document["status"] == without.document["status"]


def test_one_deployment_of_unknown_size_never_stops_the_others() -> None:
    found = decided(Situation(read_manifests([("m", CHAT + UNKNOWN)]), [node("n1"), {"metadata": {"name": "young"}}]))
    assert set(found.left_out) == {"odd"}
    assert "spec.model.card" in found.left_out["odd"]
    assert any("young" in line for line in found.change.plan.unknown)
    with pytest.raises(FailedPreconditionError, match="sizes of file:///odd"):
        decided(Situation(read_manifests([("m", UNKNOWN)]), [node("n1")]))


def test_a_members_weights_take_no_more_than_the_plan_in_force_gave_it_memory_for() -> None:
    split = CHAT.replace("Unified", "Split").replace(
        "kv:", "roles: {experts: {replicas: 3}}\n  ffn: {groups: 4}\n  kv:"
    )
    cores = {"metadata": {"name": "n1"}, "status": {"allocatable": {"cpu": "64", "memory": "256Gi"}}}
    found = decided(
        Situation(read_manifests([("m", split.replace("  traffic: {requestsPerSecond: 2}\n", ""))]), [cores])
    )
    (member,) = (p for p in found.pools if p.role == "experts")
    assert member.weights_bytes == 3 * 36 * 3 * 4096 * 12288 * 2 // 4
    assert {p.weights_bytes for p in found.pools if p.role != "experts"} == {0}
    made = running(found.change.plan)
    older = [replace(i, places=tuple(replace(p, ram_bytes=2**30 + 5) for p in i.places)) for i in made.instances]
    (member,) = (p for p in pools(Current(tuple(older)), found.problem) if p.role == "experts")
    assert member.weights_bytes == 5
