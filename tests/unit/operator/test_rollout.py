from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.objects import DRAINING, POOL
from katsura_operator.core.rollout import WORKLOAD_LABEL, Step, Target, advance, is_settled, pod_count, ready_count

NOW = "2026-11-21T12:00:00Z"
SOON = "2026-11-21T12:00:10Z"
LATE = "2026-11-21T12:01:00Z"


def workload(name: str, count: int, ready: int | None = None) -> dict[str, Any]:
    ready = count if ready is None else ready
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "n", "labels": {POOL: "p"}, "generation": 1},
        "spec": {"replicas": count, "selector": {}, "template": {}},
        "status": {"observedGeneration": 1, "replicas": count, "updatedReplicas": count, "readyReplicas": ready},
    }


def pod(name: str, of: str, *, ready: bool = True, since: str = "", born: str = NOW) -> dict[str, Any]:
    metadata = {"name": name, "labels": {WORKLOAD_LABEL: of}, "creationTimestamp": born}
    if since:
        metadata["annotations"] = {DRAINING: since}  # type: ignore[assignment]
    return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": str(ready)}]}}


def target(name: str, count: int) -> Target:
    return Target({"metadata": {"name": name}, "spec": {}}, count)


def step(targets: list[Target], existing: list[Any], pods: list[Any], role: str = "experts", **kw: Any) -> Step:
    return advance(role, targets, existing, pods, **{"now": SOON, "drain_s": 30, **kw})


def counts(made: Step) -> dict[str, int]:
    return {w["metadata"]["name"]: w["spec"]["replicas"] for w in made.keep}


def names(objects: tuple[Any, ...]) -> list[str]:
    return [o["metadata"]["name"] for o in objects]


def test_a_pool_grows_at_once() -> None:
    assert counts(step([target("a", 3)], [workload("a", 1)], [pod("x", "a")])) == {"a": 3}


def test_the_youngest_is_marked_first_and_the_count_stays_until_it_has_drained() -> None:
    pods = [pod("old", "a", born="2026-11-21T10:00:00Z"), pod("young", "a", born="2026-11-21T11:00:00Z")]
    made = step([target("a", 1)], [workload("a", 2)], pods)
    assert (names(made.mark), counts(made)) == (["young"], {"a": 2})


def test_what_is_not_ready_goes_before_what_serves() -> None:
    pods = [pod("old", "a", ready=False, born="2026-11-21T10:00:00Z"), pod("young", "a")]
    assert names(step([target("a", 1)], [workload("a", 2)], pods).mark) == ["old"]


@pytest.mark.parametrize(
    ("now", "ready", "count", "drained"),
    [(SOON, True, 2, ["x"]), (SOON, False, 1, []), (LATE, True, 1, [])],
    ids=["still works", "has drained", "took too long"],
)
def test_a_marked_pod_is_told_to_drain_until_it_is_unready_or_late(
    now: str, ready: bool, count: int, drained: list[str]
) -> None:
    pods = [pod("x", "a", ready=ready, since=NOW), pod("y", "a")]
    made = step([target("a", 1)], [workload("a", 2)], pods, now=now)
    assert (counts(made), names(made.drain), names(made.mark)) == ({"a": count}, drained, [])


def test_a_drained_pod_that_is_wanted_again_is_replaced() -> None:
    made = step([target("a", 2)], [workload("a", 2)], [pod("x", "a", since=NOW), pod("y", "a")])
    assert names(made.remove) == ["x"]


def test_pods_that_were_never_made_need_no_drain() -> None:
    assert counts(step([target("a", 1)], [workload("a", 4, ready=1)], [pod("x", "a")])) == {"a": 1}


def test_routers_and_memory_shrink_at_once() -> None:
    made = step([target("a", 1)], [workload("a", 3)], [pod(n, "a") for n in "xyz"], role="router")
    assert (counts(made), made.mark) == ({"a": 1}, ())


def test_an_old_revision_stays_until_the_new_one_is_ready() -> None:
    old, pods = workload("old", 2), [pod("x", "old"), pod("y", "old")]
    waiting = step([target("new", 2)], [old, workload("new", 2, ready=1)], pods)
    assert (counts(waiting), waiting.mark, waiting.rolling) == ({"new": 2}, (), True)
    fresh = [pod("v", "new"), pod("w", "new")]
    ready = step([target("new", 2)], [old, workload("new", 2)], [*pods, *fresh])
    assert sorted(names(ready.mark)) == ["x", "y"]


def test_pods_that_drain_replace_nothing_when_a_rollout_is_taken_back() -> None:
    workloads, taken = [workload("old", 1), workload("new", 1)], pod("y", "new")
    back = step([target("old", 1)], workloads, [pod("x", "old", since=NOW), taken])
    assert (names(back.remove), back.mark) == (["x"], ())
    gone = step([target("old", 1)], workloads, [taken])  # the count of ready pods may be a moment old
    assert gone.mark == ()
    assert names(step([target("old", 1)], workloads, [pod("z", "old"), taken]).mark) == ["y"]


def test_an_old_revision_without_pods_is_deleted() -> None:
    made = step([target("new", 1)], [workload("old", 0), workload("new", 1)], [pod("x", "new")])
    assert names(made.delete) == ["old"]


def test_recreate_ends_the_old_one_first() -> None:
    pods = [pod("x", "old")]
    made = step([target("new", 1)], [workload("old", 1)], pods, recreate=True)
    assert counts(made) == {"new": 0}
    assert names(made.mark) == ["x"]
    after = step([target("new", 1)], [workload("old", 0), workload("new", 0)], [], recreate=True)
    assert counts(after) == {"new": 1}


def test_a_status_of_an_older_generation_settles_nothing() -> None:
    stale = workload("a", 1)
    stale["metadata"]["generation"] = 2
    assert is_settled(workload("a", 1), 1)
    assert not is_settled(stale, 1)
    assert not is_settled(None, 1)


@pytest.mark.parametrize("since", ["yesterday", "", "2099-01-01T00:00:00Z"])
def test_a_mark_by_another_hand_is_made_anew_and_ends_nothing(since: str) -> None:
    marked = {**pod("x", "a"), "metadata": {**pod("x", "a")["metadata"], "annotations": {DRAINING: since}}}
    shrinks = step([target("a", 0)], [workload("a", 1)], [marked])
    assert (names(shrinks.mark), counts(shrinks)) == (["x"], {"a": 1})
    assert step([target("a", 1)], [workload("a", 1)], [marked]).remove == ()


def test_clocks_that_differ_by_a_little_cut_no_drain_short() -> None:
    made = step([target("a", 0)], [workload("a", 1)], [pod("x", "a", since=LATE)], now=NOW)
    assert (names(made.drain), counts(made)) == (["x"], {"a": 1})


def test_counts_that_a_status_does_not_know_are_zero() -> None:
    made = {**workload("a", 1), "status": {"observedGeneration": None, "replicas": None, "readyReplicas": None}}
    assert not is_settled(made, 1)
    assert ready_count([made]) == pod_count([made]) == 0
