"""What is true of each resource, in the words of `katsura.manifests.conditions`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from katsura.domain.errors import Reason
from katsura.manifests.cluster import ClusterNode
from katsura.manifests.conditions import ConditionType, Why
from katsura.manifests.kinds import ModelDeployment
from katsura.placement.cost import Coefficients
from katsura_operator.core.discovery import discovered, usable_nodes
from katsura_operator.core.knowledge import as_status, device_of, known
from katsura_operator.core.objects import (
    AGENT,
    MEMORY_STORE,
    MODEL_DEPLOYMENT,
    POOL,
    PROFILE,
    Object,
    condition_of,
    is_true,
    labels_of,
    name_of,
    namespace_of,
    number,
    replicas_of,
)
from katsura_operator.core.placing import Placement, Reading, Wanted
from katsura_operator.core.plans import bounded, listed
from katsura_operator.core.poison import Refusal
from katsura_operator.core.rollout import Pool, is_settled, pod_count, ready_count
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.core.status import Said
from katsura_operator.core.trouble import failure_of, homeless_of, trouble_of

Report = tuple[dict[str, Any], list[Said]]
_NO_HINTS: Final = "only a local run heeds hints; in a cluster the key hints-url of the Secret names that server"
_UNMET: Final = f"{Reason.DURABILITY_UNAVAILABLE}: "
"""How a memory pod begins to say that its server promises too little."""
_MOST: Final = 1e9
_DRAINING_MAX: Final = 256
_ACCEPTED = Said(ConditionType.ACCEPTED, True, Why.VALID)


def of_deployment(
    wanted: Wanted, pools: Sequence[Pool], placement: Placement, *, idle: bool, leaving: Sequence[Pool] = ()
) -> Report:
    """Status and conditions of a ModelDeployment. `leaving`: pools that serve until `pools` do."""
    planned = _planned(wanted, placement, idle=idle)
    settled = all(_is_settled(p) for p in pools)
    settled = settled and not leaving
    rolling = bool(leaving) or any(p.step.rolling for p in pools)
    as_before = bool(leaving) and all(ready_count(p.workloads) > 0 for p in leaving)
    short = [] if as_before else [p for p in pools if _is_short(p)]
    serves = as_before or (bool(pools) and all(ready_count(p.workloads) > 0 for p in pools))
    external = wanted.resource.spec.engine.value == "external"  # type: ignore[union-attr]
    said = [_ACCEPTED] if external else [_ACCEPTED, planned]
    if idle:
        said += [Said(ConditionType.PROGRESSING, not settled, Why.SCALING if not settled else Why.STABLE)]
        said += [Said(ConditionType.READY, True, Why.IDLE, "zero replicas are asked for")]
    else:
        said.append(_progress([*pools, *leaving], settled, rolling))
        said.append(_ready(wanted, planned, pools, serves, external=external))
    degraded = serves and bool(short) and not idle
    fewer = ", ".join(f"{p.name}: {ready_count(p.workloads)} of {p.wanted}{_apart(p)}" for p in short)
    why = Why.FEWER_THAN_ASKED if degraded else Why.STABLE
    said.append(Said(ConditionType.DEGRADED, degraded, why, fewer if degraded else ""))
    roles = [
        {
            "name": p.role,
            "wanted": p.wanted,
            "replicas": pod_count(p.workloads),
            "readyReplicas": ready_count(p.workloads),
        }
        for p in (*pools, *leaving)
    ]
    revisions = {labels_of(t.body).get("katsura.dev/revision", "") for p in pools for t in p.targets}
    body = {"roles": roles, "revision": next(iter(sorted(revisions)), ""), "plan": _slice(wanted, placement)}
    return {k: v for k, v in body.items() if v}, said


def of_store(obj: Object, pool: Pool, endpoint: str) -> Report:
    """Status and conditions of a MemoryStore."""
    ready = ready_count(pool.workloads)
    body = {"endpoint": endpoint, "replicas": pod_count(pool.workloads), "readyReplicas": ready}
    accepted = replace(_ACCEPTED, message=_NO_HINTS) if "hints" in obj["spec"] else _ACCEPTED
    refusal = failure_of([pod for pod in pool.pods if not is_true(pod, "Ready")])
    if _UNMET in refusal:  # pods of before, which may serve on, were made for another promise
        said = Said(ConditionType.READY, False, Why.DURABILITY_UNMET, refusal.partition(_UNMET)[2])
        return body, [accepted, said]
    holds = ready > 0 and (_was_ready(obj) or _has_fresh(pool))
    why = Why.ALL_ROLES_READY if holds else Why.PODS_NOT_READY
    trouble = refusal or trouble_of(pool.pods)
    message = "" if holds else f"{ready} of {pool.wanted} memory pods are ready" + (f"; {trouble}" if trouble else "")
    return body, [accepted, Said(ConditionType.READY, holds, why, message)]


def of_pool(seen: Object, pool: Pool, placement: Placement) -> Report:
    """Status and conditions of a RolePool."""
    asked = replicas_of(seen)
    message = ""
    if pool.wanted != asked:
        message = f"{asked} asked for, {pool.wanted} granted by {placement.plan_name or 'no plan'}"
    body = {
        "replicas": pod_count(pool.workloads),
        "readyReplicas": ready_count(pool.workloads),
        "granted": pool.wanted,
        "message": message,
        "selector": f"{POOL}={pool.name}",
        "draining": draining(pool)[:_DRAINING_MAX],
    }
    holds = not _is_short(pool) and (_was_ready(seen) or _has_fresh(pool))
    why = Why.ALL_ROLES_READY if holds and pool.wanted else Why.IDLE if holds else Why.PODS_NOT_READY
    trouble = trouble_of(pool.pods) or f"{ready_count(pool.workloads)} of {pool.wanted} pods are ready{_apart(pool)}"
    if holds and (pool.step.drain or pool.step.mark):
        why = Why.DRAINING
    return body, [Said(ConditionType.READY, holds, why, pool.step.waits if holds else trouble)]


def draining(pool: Pool) -> list[str]:
    """Pods that finish their work before they end."""
    return sorted(name_of(p) for p in (*pool.step.mark, *pool.step.drain))


def of_others(
    seen: Snapshot, reading: Reading, settings: Settings, failed: Mapping[tuple[str, str], Refusal]
) -> Iterator[tuple[Object, dict[str, Any], list[Said]]]:
    """Agents, profiles, and resources that are refused, or that the planner failed on."""
    refused = dict(reading.refused)
    refused |= {("AcceleratorProfile", "", n): why for (kind, n), why in failed.items() if kind == PROFILE.name}
    refused |= {("Agent", *n.split("/")): why for (kind, n), why in failed.items() if kind == AGENT.name}  # type: ignore[misc]
    for obj in (*seen.of(MODEL_DEPLOYMENT), *seen.of(MEMORY_STORE), *seen.of(AGENT), *seen.of(PROFILE)):
        refusal = refused.get((str(obj["kind"]), namespace_of(obj), name_of(obj)))
        if refusal is not None:
            ready = [] if obj["kind"] == PROFILE.name else [Said(ConditionType.READY, False, *refusal)]
            yield obj, {}, [Said(ConditionType.ACCEPTED, False, *refusal), *ready]
    for obj in seen.of(AGENT):
        if (str(obj["kind"]), namespace_of(obj), name_of(obj)) not in refused:
            yield obj, {}, _of_agent(obj, seen)
    nodes = usable_nodes(seen) if settings.nodes_observed and seen.of(PROFILE) else None
    believed = known(seen, settings).devices
    for obj in seen.of(PROFILE):
        if (str(obj["kind"]), "", name_of(obj)) not in refused:
            yield obj, *_of_profile(obj, nodes, believed)


def approved(wanted: Wanted) -> str:
    """The plan that an advisory deployment follows; empty for none."""
    assert isinstance(wanted.resource, ModelDeployment)
    return wanted.resource.spec.approved_plan or ""


def _planned(wanted: Wanted, placement: Placement, *, idle: bool) -> Said:
    kind, name = ConditionType.PLANNED, wanted.qualified
    if idle:
        return Said(kind, True, Why.IDLE, "zero replicas are asked for")
    if name in placement.awaiting:
        what = f"set spec.approvedPlan: {placement.plan_name} to follow it (kubectl describe kplan)"
        return Said(kind, False, Why.AWAITING_APPROVAL, what)
    if (MODEL_DEPLOYMENT.name, name) in placement.failed:
        return Said(kind, False, *placement.failed[MODEL_DEPLOYMENT.name, name])
    if placement.trouble or name in placement.left_out:
        return Said(kind, False, placement.why, placement.left_out.get(name) or placement.trouble)
    if placement.plan is None:
        return Said(kind, False, Why.NOT_PLANNED)
    service = _service_of(name, placement)
    if not placement.parts.get(name) or (number(service.get("unmetShare")) or 0) > 1e-6:
        unmet = f"{placement.plan_name} cannot give it what it asks for: "
        refused = listed(placement.plan, "refused", "service", "why")
        unmet += "; ".join(str(r["why"]) for r in refused if r["service"] == name)
        helps = [str(r["what"]) for r in listed(placement.plan, "relaxations", "what")]
        more = f"; it would fit with: {', '.join(helps)}" if helps else ""
        return Said(kind, False, Why.INSUFFICIENT_CAPACITY, unmet.rstrip(": ") + more)
    plan = placement.plan_of(name)
    without = "".join(f"; without {k} {n}: {why}" for (k, n), (_, why) in sorted(placement.failed.items()))
    return Said(kind, True, Why.PLANNED, (name_of(plan) if plan else "") + without)


def _service_of(name: str, placement: Placement) -> Mapping[str, Any]:
    services = listed(placement.plan, "services", "name") if placement.plan else ()
    return next((s for s in services if s["name"] == name), {})


def _slice(wanted: Wanted, placement: Placement) -> dict[str, Any]:
    service, plan = _service_of(wanted.qualified, placement), placement.plan_of(wanted.qualified)
    if plan is None or not service:
        return {}
    point = service.get("point") or {}
    made = {
        "name": name_of(plan),
        "hourlyUsd": bounded(service.get("hourlyUsd"), _MOST) or 0.0,
        "itlMs": bounded(point.get("itlMs"), _MOST),
        "ttftMs": bounded(point.get("ttftMs"), _MOST),
        "gap": min(1.0, max(0.0, number((plan.get("status") or {}).get("gap")) or 0.0)),
    }
    return {k: v for k, v in made.items() if v is not None}


def _is_settled(pool: Pool) -> bool:
    if pool.untouched:
        return all(is_settled(w, replicas_of(w)) for w in pool.workloads)
    have = {name_of(w): w for w in pool.workloads}
    return not pool.step.rolling and all(
        is_settled(have.get(str(t.body["metadata"]["name"])), t.replicas) for t in pool.targets
    )


def _progress(pools: Sequence[Pool], settled: bool, rolling: bool) -> Said:
    kind = ConditionType.PROGRESSING
    waits = "; ".join(f"{p.name}: {p.step.waits}" for p in pools if p.step.waits)
    if any(p.step.mark or p.step.drain for p in pools):
        return Said(kind, True, Why.DRAINING, waits)
    if rolling:
        homeless = "; ".join(said for p in pools if (said := homeless_of(p.pods)))
        if homeless:
            helps = "make room for old and new pods at once, or set rollout.strategy: Recreate"
            return Said(kind, True, Why.INSUFFICIENT_CAPACITY, f"{homeless}; {helps}")
        return Said(kind, True, Why.ROLLOUT_IN_PROGRESS, waits)
    return Said(kind, not settled, Why.STABLE if settled else Why.SCALING)


def _ready(wanted: Wanted, planned: Said, pools: Sequence[Pool], serves: bool, *, external: bool) -> Said:
    """Ready once all of its pools are, by pods of today's generation; then for as long as every role has a ready pod.

    A plan that cannot be followed leaves what serves.
    """
    kind = ConditionType.READY
    if not planned.holds and not external and not serves:
        return Said(kind, False, planned.why, planned.message)
    fresh = all(_has_fresh(p) for p in pools)
    if serves and (_was_ready(wanted.obj) or (fresh and not any(_is_short(p) for p in pools))):
        return Said(kind, True, Why.ALL_ROLES_READY)
    counts = ", ".join(f"{p.role} {ready_count(p.workloads)}/{p.wanted}" for p in pools)
    why = Why.PODS_NOT_READY if fresh or not serves else Why.ROLLOUT_IN_PROGRESS
    trouble = next((said for p in pools if (said := trouble_of(p.pods))), "")
    return Said(kind, False, why, f"{counts}; {trouble}" if trouble else counts)


def _was_ready(obj: Object) -> bool:
    """Whether it was ready in this generation already: a count that changes makes nothing stale."""
    old = condition_of(obj, ConditionType.READY)
    return old.get("status") == "True" and old.get("observedGeneration") == obj["metadata"].get("generation", 1)


def _is_short(pool: Pool) -> bool:
    return ready_count(pool.workloads) - pool.odd < pool.wanted


def _apart(pool: Pool) -> str:
    """What is wrong with members that are ready."""
    return f", {pool.odd} computing other bits than the rest, for which it cannot stand in" if pool.odd else ""


def _has_fresh(pool: Pool) -> bool:
    """Whether a pod of the newest template of each workload is ready."""
    if pool.untouched:
        return True
    have = {name_of(w): w for w in pool.workloads}
    for target in pool.targets:
        workload = have.get(str(target.body["metadata"]["name"]))
        status = (workload or {}).get("status") or {}
        if workload is None or (status.get("observedGeneration") or 0) < workload["metadata"].get("generation", 1):
            return False
        if target.replicas and min(status.get("updatedReplicas") or 0, status.get("readyReplicas") or 0) < 1:
            return False
    return True


def _of_agent(obj: Object, seen: Snapshot) -> list[Said]:
    spec, namespace = obj["spec"], namespace_of(obj)  # a valid one: others are refused
    named = [(MODEL_DEPLOYMENT, spec["modelRef"]["name"])]
    if spec.get("memoryRef"):
        named.append((MEMORY_STORE, spec["memoryRef"]["name"]))
    found = [(kind, name, seen.get(kind, namespace, name)) for kind, name in named]
    missing = [f"no {kind.name} {name!r} in namespace {namespace}" for kind, name, it in found if it is None]
    if missing:
        said = "; ".join(missing)
        return [
            Said(ConditionType.ACCEPTED, False, Why.REFERENCE_NOT_FOUND, said),
            Said(ConditionType.READY, False, Why.REFERENCE_NOT_FOUND, said),
        ]
    waiting = [f"{kind.name} {name} is not ready" for kind, name, it in found if it and not is_true(it, "Ready")]
    why = Why.DEPENDENCIES_NOT_READY if waiting else Why.DEPENDENCIES_READY
    return [_ACCEPTED, Said(ConditionType.READY, not waiting, why, "; ".join(waiting))]


def _of_profile(obj: Object, nodes: Sequence[ClusterNode] | None, believed: Mapping[str, Coefficients]) -> Report:
    spec = obj["spec"]
    if nodes is not None:
        count, total = discovered(obj, nodes)
    else:
        count = sum(i["nodes"] for i in spec.get("inventory") or ())
        total = sum(i["nodes"] * i["perNode"] for i in spec.get("inventory") or ())
    measured = believed.get(device_of(obj))
    found = Said(ConditionType.DISCOVERED, count > 0, Why.NODES_FOUND if count else Why.NO_NODES)
    told = Said(ConditionType.CALIBRATED, measured is not None, Why.MEASURED if measured else Why.ESTIMATED)
    status: dict[str, Any] = {"nodes": count, "total": total}
    if measured is not None:
        status["calibration"] = as_status(measured)
    return status, [_ACCEPTED, found, told]
