"""How one pool gets from the workloads that it has to those that it should have, without ending work in flight.

    grow        the count rises at once
    shrink      mark a pod (annotation, deletion cost) -> it drains -> it is unready -> the count falls by one
    revision    new workload beside the old one -> all its pods ready -> the old one shrinks to nothing -> it is deleted

Every state is read from the objects themselves, so a pass may be cut off anywhere. Rank: the oldest pod is rank 0; the
highest rank goes first, pods that are not ready before all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from katsura_operator.core.objects import (
    DRAINING,
    POOL,
    Object,
    annotations_of,
    is_ending,
    is_true,
    labels_of,
    moment,
    name_of,
    replicas_of,
)

WORKLOAD_LABEL: Final = "katsura.dev/workload"
"""On pods: which workload of the pool they belong to."""
_SKEW_S: Final = 60
"""By which the clocks of two operators may differ."""
NEEDS_DRAIN: Final = frozenset(("attention", "experts", "unified"))
"""Roles that are told over gRPC to finish; the others finish what they have by SIGTERM alone."""


@dataclass(frozen=True, slots=True)
class Target:
    """A workload as it should be. `body` has everything but its replicas."""

    body: Mapping[str, Any]
    replicas: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now.

    Attributes:
        keep: workloads as they should be in this moment. delete: workloads without pods.
        mark: pods to mark as draining. drain: marked pods that still work. remove: drained pods that nobody shrinks
            away.
        waits: for what the next step waits, for people; empty when the pool is as it should be.
        rolling: whether pods of an older revision are left.
    """

    keep: tuple[Mapping[str, Any], ...]
    delete: tuple[Object, ...] = ()
    mark: tuple[Object, ...] = ()
    drain: tuple[Object, ...] = ()
    remove: tuple[Object, ...] = ()
    waits: str = ""
    rolling: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """One pool in this pass.

    `untouched`: no plan says what it should be, so it stays as it is. `odd`: ready members that compute other bits than
    most, and so can never stand in for them.
    """

    name: str
    role: str
    wanted: int
    workloads: tuple[Object, ...]
    pods: tuple[Object, ...]
    targets: tuple[Target, ...]
    step: Step
    untouched: bool = False
    odd: int = 0


def advance(
    role: str,
    targets: Sequence[Target],
    existing: Sequence[Object],
    pods: Sequence[Object],
    *,
    now: str,
    drain_s: int,
    recreate: bool = False,
) -> Step:
    """The next step of one pool. `existing` and `pods` are those that carry its label."""
    have = {name_of(w): w for w in existing}
    names = {str(t.body["metadata"]["name"]) for t in targets}
    stale = [w for w in existing if name_of(w) not in names and not is_ending(w)]

    def has_arrived(target: Target) -> bool:
        name = str(target.body["metadata"]["name"])
        able = role not in NEEDS_DRAIN or able_count(_pods_of(name, pods), now, drain_s) >= target.replicas
        return able and is_settled(have.get(name), target.replicas)

    done = all(map(has_arrived, targets))
    held = recreate and any(_count(w) or _observed(w) for w in stale)
    keep: list[Mapping[str, Any]] = []
    parts: list[_Shrink] = []
    for target in targets:
        name = str(target.body["metadata"]["name"])
        want = 0 if held else target.replicas
        part = _shrink(role, have.get(name), want, _pods_of(name, pods), now, drain_s)
        parts.append(part)
        keep.append(_with_count(target.body, part.count))
    delete: list[Object] = []
    for old in stale:
        if not (done or recreate):
            continue
        part = _shrink(role, old, 0, _pods_of(name_of(old), pods), now, drain_s)
        parts.append(part)
        if part.count == 0 and _observed(old) == 0 and _count(old) == 0:
            delete.append(old)
        elif part.count != _count(old):
            keep.append(_with_count(_as_applied(old), part.count))
    marked = [pod for part in parts for pod in part.drain]
    waits = f"{len(marked)} pods drain" if marked else ""
    if stale and not done:
        waits = waits or "pods of the new revision are not all ready"
    return Step(
        tuple(keep),
        tuple(delete),
        tuple(pod for part in parts for pod in part.mark),
        tuple(marked) if role in NEEDS_DRAIN else (),
        tuple(pod for part in parts for pod in part.remove),
        waits,
        bool(stale),
    )


@dataclass(frozen=True, slots=True)
class _Shrink:
    count: int
    mark: tuple[Object, ...] = ()
    drain: tuple[Object, ...] = ()
    remove: tuple[Object, ...] = ()


def _shrink(role: str, workload: Object | None, want: int, pods: Sequence[Object], now: str, drain_s: int) -> _Shrink:
    have = 0 if workload is None else _count(workload)
    marked = [p for p in pods if _is_marked(p, now, drain_s)]
    surplus = have - want
    if surplus <= 0:
        return _Shrink(want, remove=tuple(marked))
    if role not in NEEDS_DRAIN:
        return _Shrink(want)
    absent = min(surplus, max(0, have - len(pods)))
    chosen = [*marked, *(p for p in sorted(pods, key=_rank) if p not in marked)][: surplus - absent]
    gone = [p for p in chosen if p in marked and _is_drained(p, now, drain_s)]
    return _Shrink(
        have - absent - len(gone),
        mark=tuple(p for p in chosen if p not in marked),
        drain=tuple(p for p in chosen if p in marked and p not in gone),
    )


def is_settled(workload: Object | None, replicas: int) -> bool:
    """Whether every pod of its newest template is there and ready, and nothing else."""
    if workload is None or is_ending(workload):
        return False
    status = workload.get("status") or {}
    seen = (status.get("observedGeneration") or 0) >= workload["metadata"].get("generation", 1)
    counts = [status.get(key) or 0 for key in ("replicas", "updatedReplicas", "readyReplicas")]
    return seen and _count(workload) == replicas and counts == [replicas] * 3


def able_count(pods: Sequence[Object], now: str, drain_s: int) -> int:
    """Ready pods that were not told to end: others are no replacement."""
    return sum(is_true(p, "Ready") and not is_ending(p) and not _is_marked(p, now, drain_s) for p in pods)


def ready_count(workloads: Sequence[Object]) -> int:
    """Ready pods of them."""
    return sum((w.get("status") or {}).get("readyReplicas") or 0 for w in workloads)


def pod_count(workloads: Sequence[Object]) -> int:
    """Pods of them."""
    return sum(_observed(w) for w in workloads)


def _rank(pod: Object) -> tuple[bool, list[int], str]:
    """Who goes first: what is not ready, then the youngest."""
    created = str(pod["metadata"].get("creationTimestamp", ""))
    return is_true(pod, "Ready"), [-ord(c) for c in created], name_of(pod)


def _is_drained(pod: Object, now: str, drain_s: int) -> bool:
    return not is_true(pod, "Ready") or _drains_s(pod, now) >= drain_s


def _is_marked(pod: Object, now: str, drain_s: int) -> bool:
    """Whether we told it to end. Marks by another hand, or of a time to come, are no marks: they are made anew."""
    return _drains_s(pod, now) >= -max(drain_s, _SKEW_S)


def _drains_s(pod: Object, now: str) -> float:
    """Seconds since it was marked, below 0 where clocks differ; -inf where it is not marked by any time."""
    since, today = moment(annotations_of(pod).get(DRAINING)), moment(now)
    return -math.inf if since is None or today is None else (today - since).total_seconds()


def _pods_of(workload: str, pods: Sequence[Object]) -> list[Object]:
    return [p for p in pods if labels_of(p).get(WORKLOAD_LABEL) == workload and not is_ending(p)]


def _count(workload: Object) -> int:
    return replicas_of(workload)


def _observed(workload: Object) -> int:
    return int((workload.get("status") or {}).get("replicas") or 0)


def _with_count(body: Mapping[str, Any], count: int) -> dict[str, Any]:
    return {**body, "spec": {**body["spec"], "replicas": count}}


def _as_applied(workload: Object) -> dict[str, Any]:
    """A workload of an older revision as it is, without what the API server adds: only its count will change."""
    metadata = {
        k: v for k, v in workload["metadata"].items() if k in ("name", "namespace", "labels", "ownerReferences")
    }
    kept = {k: workload["spec"][k] for k in ("selector", "template", "strategy") if k in workload["spec"]}
    assert POOL in metadata["labels"]
    return {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "metadata": metadata, "spec": kept}
