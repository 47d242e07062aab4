"""What should be: children, counts, drains, statuses and events, from what is seen and what is planned.

`desire` is the operator's whole mind. It builds a `Desired`, which `execute` carries out in the order of its fields;
carried out twice it changes nothing, cut off anywhere the next pass ends it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from katsura.manifests.conditions import EventReason
from katsura.manifests.decision import PoolPart
from katsura.manifests.kinds import Engine, MemoryStore, ModelDeployment, ModelDeploymentSpec, RolloutStrategy
from katsura.manifests.stores import MemoryStoreSpec
from katsura_operator.core import report
from katsura_operator.core.affinity import Expressions
from katsura_operator.core.objects import (
    BUDGET,
    DEPLOYMENT,
    MANAGED_BY,
    MANAGER,
    NODE,
    POD,
    POLICY,
    POOL,
    REVISION,
    ROLE,
    ROLE_POOL,
    SEEDED,
    SERVICE,
    STORE,
    WORKLOAD,
    Object,
    annotations_of,
    digest,
    is_true,
    key_of,
    labels_of,
    make,
    name_of,
    namespace_of,
    owner,
    replicas_of,
)
from katsura_operator.core.pace import measured, readable
from katsura_operator.core.placing import Placement, Reading, Wanted, is_idle, roles_of
from katsura_operator.core.plans import plans
from katsura_operator.core.pods import GRPC, HELPER, METRICS, Size, external_template, template
from katsura_operator.core.poison import fault
from katsura_operator.core.policies import external_policy
from katsura_operator.core.purging import purging
from katsura_operator.core.rollout import WORKLOAD_LABEL, Pool, Step, Target, able_count, advance, ready_count
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.core.status import Said, event, failed_status, status_of, transitions

ROUTERS: Final = "katsura-router"
"""Name of the router pool and of the Service in front of it, in every served namespace."""
_HELPER_DRAIN_S: Final = 30
_SEED_MAX: Final = 256
"""More, a RolePool cannot ask for; a plan may give more."""
_ROLES: Final = ("attention", "experts", "unified", "external")


@dataclass(slots=True)
class Desired:
    """What to do, in this order.

    Attributes:
        plan: PlacementPlan to store. seeds: objects made once, under another field manager. keep: objects that are
            kept as they are here. events: told before the statuses that they announce.
        statuses: (object as seen, object to apply to its status). mark, drain, remove: pods. delete: objects.
        hold: objects that get `purging.FINALIZER`, before anything is made. release: that lose it.
    """

    plan: Mapping[str, Any] | None = None
    hold: list[Object] = field(default_factory=list)
    seeds: list[Mapping[str, Any]] = field(default_factory=list)
    keep: list[Mapping[str, Any]] = field(default_factory=list)
    mark: list[Object] = field(default_factory=list)
    drain: list[Object] = field(default_factory=list)
    remove: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    release: list[Object] = field(default_factory=list)
    statuses: list[tuple[Object, Mapping[str, Any]]] = field(default_factory=list)


def desire(
    snapshot: Snapshot,
    reading: Reading,
    placement: Placement,
    settings: Settings,
    affinities: Mapping[str, Expressions],
) -> Desired:
    """What should be. `affinities`: match expressions by node class (`core.affinity`)."""
    made = Desired(plan=placement.plan if placement.is_new else None)
    mind = _Mind(snapshot, reading, placement, settings, affinities, made)
    for wanted in reading.stores:
        mind.safely(mind.store, wanted)
    for wanted in reading.deployments:
        mind.safely(mind.deployment, wanted)
    for namespace in sorted({namespace_of(w.obj) for w in reading.deployments if _is_native(w)}):
        mind.routers(namespace)
    mind.the_rest()
    mind.endings()
    in_force = {placement.plan_name} | {report.approved(w) for w in reading.deployments}
    stored = plans(snapshot, settings)
    made.delete += [
        p
        for p in stored[: -settings.plans_kept]
        if name_of(p) not in in_force and labels_of(p).get(MANAGED_BY) == MANAGER
    ]
    return made


class _Mind:
    def __init__(
        self,
        snapshot: Snapshot,
        reading: Reading,
        placement: Placement,
        settings: Settings,
        affinities: Mapping[str, Expressions],
        made: Desired,
    ) -> None:
        self._seen, self._reading, self._placement = snapshot, reading, placement
        self._settings, self._affinities, self._made = settings, affinities, made
        self._staying: set[tuple[str, str | None]] = set()
        self._failed: set[tuple[str, str, str]] = set()

    def safely(self, decide: Callable[[Wanted], None], wanted: Wanted) -> None:
        """Decide of one resource; where we fail on it it stays as it is, is told so, and the others are served."""
        every = (getattr(self._made, f.name) for f in fields(Desired))
        lists: list[list[Any]] = [found for found in every if isinstance(found, list)]
        sizes = [len(found) for found in lists]
        try:
            decide(wanted)
        except Exception as error:  # noqa: BLE001  # told in its condition
            for found, size in zip(lists, sizes, strict=True):
                del found[size:]
            self._failed.add(key_of(wanted.obj))
            self._made.statuses.append((wanted.obj, failed_status(wanted.obj, fault(error), self._seen.now)))

    def deployment(self, wanted: Wanted) -> None:
        """Everything of one ModelDeployment."""
        said = wanted.resource
        assert isinstance(said, ModelDeployment)
        if said.spec.engine is Engine.EXTERNAL:
            pools = [self._external(wanted, said.spec)]
        else:
            pools = [p for role in roles_of(said) if (p := self._model_pool(wanted, said.spec, role)) is not None]
        leaving = self._leaving(wanted, said.spec, pools)
        idle = is_idle(wanted, self._seen)
        status, verdict = report.of_deployment(wanted, pools, self._placement, idle=idle, leaving=leaving)
        if said.spec.engine is not Engine.EXTERNAL:
            status["measured"] = self._measured(wanted, said.spec)
        self._tell(wanted.obj, status, verdict)

    def _measured(self, wanted: Wanted, spec: ModelDeploymentSpec) -> list[dict[str, Any]]:
        """What its steps take; what was told before stays where no plan is followed now."""
        plan, problem, name = self._placement.plan, self._placement.problem, wanted.qualified
        if plan is None or problem is None or name in self._placement.awaiting:
            return [dict(entry) for entry in readable(wanted.obj)]
        revision, overcommit = revision_of(spec, self._settings), self._settings.overcommit
        return measured(wanted.obj, name, revision, plan, problem, self._seen, overcommit=overcommit)

    def _leaving(self, wanted: Wanted, spec: ModelDeploymentSpec, pools: Sequence[Pool]) -> list[Pool]:
        """Pools of a topology or an engine that it has no more: they serve until those that it has do, then drain."""
        names, namespace = {p.name for p in pools}, namespace_of(wanted.obj)
        now, drain_s = self._seen.now, spec.drain_timeout_seconds
        able = [min(ready_count(p.workloads), able_count(p.pods, now, drain_s)) for p in pools]
        ready = (p.targets and count >= p.wanted for p, count in zip(pools, able, strict=True))
        arrived = bool(pools) and all(ready)
        made = []
        for role in _ROLES:
            name = f"{name_of(wanted.obj)}-{role}"
            found = self._seen.labelled(WORKLOAD, namespace, **{POOL: name, DEPLOYMENT: name_of(wanted.obj)})
            if name in names or not found:
                continue
            self._staying.add((namespace, name))
            pods = self._seen.labelled(POD, namespace, **{POOL: name})
            step = Step((), waits="pods of the new topology are not all ready", rolling=True)
            if arrived or spec.rollout.strategy is RolloutStrategy.RECREATE:
                step = advance(role, (), found, pods, now=now, drain_s=drain_s)
                self._take(step)
            made.append(Pool(name, role, 0, tuple(found), tuple(pods), (), step))
        return made

    def _take(self, step: Step) -> None:
        made = self._made
        made.keep += step.keep
        made.mark += step.mark
        made.drain += step.drain
        made.remove += step.remove
        made.delete += step.delete

    def store(self, wanted: Wanted) -> None:
        """The memory pods of one MemoryStore and the Service in front of them."""
        said = wanted.resource
        assert isinstance(said, MemoryStore)
        parts = self._parts(wanted)
        name = f"{name_of(wanted.obj)}-memory"
        stands = self._unplanned(namespace_of(wanted.obj), name)
        count = max(said.spec.replicas, sum(p.processes for p in parts), replicas_of(stands) if stands else 0)
        labels = {STORE: name_of(wanted.obj)}
        pool = self._pool(name, "memory", wanted.obj, labels, [(parts, count)], None, store=said.spec)
        self._made.keep.append(self._service(name, wanted.obj, pool, GRPC))
        status, verdict = report.of_store(wanted.obj, pool, f"{name}.{namespace_of(wanted.obj)}:{GRPC}")
        self._tell(wanted.obj, status, verdict)

    def routers(self, namespace: str) -> None:
        """The routers of a namespace: they serve every deployment in it; the largest wish is met."""
        mine = [w for w in self._reading.deployments if namespace_of(w.obj) == namespace and _is_native(w)]
        specs = [w.resource.spec for w in mine if isinstance(w.resource, ModelDeployment)]
        planned = {w.qualified: [p for p in self._parts(w) if p.role == "router"] for w in mine}
        parts = max(planned.values(), key=lambda found: sum(p.processes for p in found))
        pinned = [s.roles.router.replicas for s in specs if s.roles.router and s.roles.router.replicas]
        stands = self._unplanned(namespace, ROUTERS)
        seed = max(1, sum(p.processes for p in parts), *pinned, replicas_of(stands) if stands else 0)
        seen = self._seen.get(ROLE_POOL, namespace, ROUTERS)
        asked = seed if seen is None else replicas_of(seen)
        scaled = seen is not None and annotations_of(seen).get(SEEDED) not in (None, str(asked))
        count = max(1, asked if scaled and not pinned else seed)
        pool = self._pool(ROUTERS, "router", mine[0].obj, {}, [(parts, count)], None, mine)
        self._role_pool(pool, mine[0].obj, None, seed, seed if pinned else None, mine)
        self._made.keep.append(self._service(ROUTERS, mine[0].obj, pool, GRPC, mine))

    def the_rest(self) -> None:
        """Agents, profiles, refused resources, and workloads whose pool is gone."""
        for obj, status, verdict in report.of_others(self._seen, self._reading, self._settings, self._placement.failed):
            self._tell(obj, status, verdict)
        made = {key_of(o) for o in self._made.keep}
        kept = {(namespace_of(o), labels_of(o).get(POOL)) for o in self._made.keep}
        kept |= self._staying
        # What is refused is not acted upon: its pods, and the routers that serve them, stay as they are.
        left = {*self._reading.refused, *self._failed}
        held = {(ns, f"{name}-{role}") for kind, ns, name in left if kind == "ModelDeployment" for role in _ROLES}
        held |= {(ns, ROUTERS) for kind, ns, _ in left if kind == "ModelDeployment"}
        held |= {(ns, f"{name}-memory") for kind, ns, name in left if kind == "MemoryStore"}
        for kind in (WORKLOAD, SERVICE, BUDGET, POLICY, ROLE_POOL):
            for obj in self._seen.of(kind):
                pool = (namespace_of(obj), labels_of(obj).get(POOL))
                wanted = key_of(obj) in made or pool in (self._staying if kind is POLICY else kept)
                ours = pool[1] is not None and labels_of(obj).get(MANAGED_BY) == MANAGER
                if ours and not wanted and pool not in held:
                    self._made.delete.append(obj)

    def endings(self) -> None:
        """Stores that are deleted with their data, and those that may be."""
        found, made = purging(self._seen, self._reading, self._settings), self._made
        made.hold, made.release = found.hold, found.release
        made.keep += found.keep
        made.delete += found.delete
        made.events += found.events
        for obj, said in found.said:
            self._tell(obj, {}, said)

    def _parts(self, wanted: Wanted) -> tuple[PoolPart, ...]:
        return self._placement.parts.get(wanted.owner, ())

    def _model_pool(self, wanted: Wanted, spec: ModelDeploymentSpec, role: str) -> Pool | None:
        name = f"{name_of(wanted.obj)}-{role}"
        labels = {DEPLOYMENT: name_of(wanted.obj)}
        parts = [p for p in self._parts(wanted) if p.role == role]
        groups: dict[str, list[PoolPart]] = defaultdict(list)
        for part in parts:
            groups[digest(self._affinities.get(part.node_class, ()), part.resource, part.accelerators)].append(part)
        counted = [(tuple(group), sum(p.processes for p in group)) for _, group in sorted(groups.items())]
        idle = is_idle(wanted, self._seen)
        planned = roles_of_parts(self._parts(wanted))  # routers alone serve nobody
        if not counted and not idle and planned:  # the plan chose the other topology
            return None
        pool = self._pool(name, role, wanted.obj, labels, counted, spec, untouched=not planned and not idle)
        said = getattr(spec.roles, role)
        seed = sum(count for _, count in counted) or spec.replicas_of(role) or 1
        self._role_pool(pool, wanted.obj, name_of(wanted.obj), seed, said.replicas if said else None)
        return pool

    def _pool(
        self,
        name: str,
        role: str,
        owned_by: Object,
        labels: Mapping[str, str],
        counted: Sequence[tuple[Sequence[PoolPart], int]],
        spec: ModelDeploymentSpec | None,
        owners: Sequence[Wanted] = (),
        *,
        untouched: bool = False,
        store: MemoryStoreSpec | None = None,
    ) -> Pool:
        namespace = namespace_of(owned_by)
        workloads = tuple(self._seen.labelled(WORKLOAD, namespace, **{POOL: name}))
        pods = self._seen.labelled(POD, namespace, **{POOL: name})
        common = {POOL: name, ROLE: role, **labels}
        targets = tuple(
            self._target(name, role, owned_by, common, parts, n, spec, owners, store) for parts, n in counted
        )
        if untouched:
            count = sum(map(replicas_of, workloads))
            return Pool(name, role, count, workloads, tuple(pods), (), Step(()), untouched=True)
        drain_s = spec.drain_timeout_seconds if spec else _HELPER_DRAIN_S
        recreate = spec is not None and spec.rollout.strategy is RolloutStrategy.RECREATE
        step = advance(role, targets, workloads, pods, now=self._seen.now, drain_s=drain_s, recreate=recreate)
        count = sum(n for _, n in counted)
        odd = sum(p["metadata"].get("uid") in self._seen.odd for p in pods)
        alike = ready_count(workloads) - odd if odd else count
        self._take(step)
        unavailable = 0 if role == "experts" and alike < 2 else 1
        self._made.keep.append(self._budget(name, owned_by, common, owners, unavailable))
        return Pool(name, role, count, workloads, tuple(pods), targets, step, odd=odd)

    def _target(
        self,
        pool: str,
        role: str,
        owned_by: Object,
        common: Mapping[str, str],
        parts: Sequence[PoolPart],
        count: int,
        spec: ModelDeploymentSpec | None,
        owners: Sequence[Wanted],
        store: MemoryStoreSpec | None,
    ) -> Target:
        first = parts[0] if parts else None
        where = self._affinities.get(first.node_class, ()) if first and spec else ()
        revision = revision_of(spec, self._settings) if spec else ""
        of_class = digest(where, first.resource if first else "", revision, length=6)
        name = f"{pool}-{of_class}" if spec else pool
        own = {**common, WORKLOAD_LABEL: name, **({REVISION: revision} if revision else {})}
        body = self._head(WORKLOAD, owned_by, name, own, owners)
        size = self._size(parts) if parts else HELPER
        pods = template(
            role,
            size,
            self._settings,
            labels=own | {"app.kubernetes.io/part-of": "katsura"},
            where=where,
            spec=spec,
            deployment=name_of(owned_by),
            store=store,
        )
        stands = None if parts else self._unplanned(namespace_of(owned_by), name)
        old = ((((stands or {}).get("spec") or {}).get("template") or {}).get("spec") or {}).get("containers") or ()
        if spec is None and old and old[0].get("resources"):
            pods["spec"]["containers"][0]["resources"] = old[0]["resources"]
        surge = {"maxSurge": 1, "maxUnavailable": 0}
        body["spec"] = {
            "selector": {"matchLabels": {WORKLOAD_LABEL: name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": surge},
            "revisionHistoryLimit": 2,
            "template": pods,
        }
        if spec is not None and spec.rollout.strategy is RolloutStrategy.RECREATE:
            body["spec"]["strategy"] = {"type": "Recreate"}
        return Target(body, count)

    def _unplanned(self, namespace: str, name: str) -> Object | None:
        """A workload as it stands, where nothing can be planned: that is no reason to make it smaller."""
        nothing = self._placement.plan is None and self._placement.trouble
        return self._seen.get(WORKLOAD, namespace, name) if nothing else None

    def _size(self, parts: Sequence[PoolPart]) -> Size:
        """What one pod takes. Devices that only ResourceSlices tell of come by the deployment's claims."""
        size = Size.of(parts)
        names = {n for c in self._placement.classes for p in parts if c.name == p.node_class for n in c.nodes}
        nodes = [n for n in self._seen.of(NODE) if name_of(n) in names]
        offered = [(n.get("status") or {}).get("allocatable") or {} for n in nodes]
        return replace(size, resource="") if nodes and not any(size.resource in have for have in offered) else size

    def _external(self, wanted: Wanted, spec: ModelDeploymentSpec) -> Pool:
        assert spec.external is not None
        name = f"{name_of(wanted.obj)}-external"
        labels = {POOL: name, ROLE: "external", DEPLOYMENT: name_of(wanted.obj), WORKLOAD_LABEL: name}
        body = self._head(WORKLOAD, wanted.obj, name, labels, ())
        pods = external_template(spec.external, self._settings, spec.pod, labels)
        body["spec"] = {"selector": {"matchLabels": {WORKLOAD_LABEL: name}}, "template": pods}
        target = Target(body, spec.external.replicas)
        workloads = tuple(self._seen.labelled(WORKLOAD, namespace_of(wanted.obj), **{POOL: name}))
        pods_seen = tuple(self._seen.labelled(POD, namespace_of(wanted.obj), **{POOL: name}))
        step = advance("external", [target], workloads, (), now=self._seen.now, drain_s=0)
        self._made.keep += step.keep
        pool = Pool(name, "external", spec.external.replicas, workloads, pods_seen, (target,), step)
        self._made.keep.append(self._service(name, wanted.obj, pool, spec.external.port))
        if self._settings.dns:
            policy = self._head(POLICY, wanted.obj, name, {POOL: name, ROLE: "external"}, ())
            self._made.keep.append(policy | {"spec": external_policy(name, spec.external, self._settings.dns)})
        return pool

    def _role_pool(
        self,
        pool: Pool,
        owned_by: Object,
        deployment: str | None,
        seed: int,
        pinned: int | None,
        owners: Sequence[Wanted] = (),
    ) -> None:
        """The RolePool of `pool`: its count is ours where a role says `replicas`, else seeded once and left alone."""
        labels = {POOL: pool.name, ROLE: pool.role, **({DEPLOYMENT: deployment} if deployment else {})}
        body = self._head(ROLE_POOL, owned_by, pool.name, labels, owners)
        body["spec"] = {"role": pool.role, **({"deploymentRef": {"name": deployment}} if deployment else {})}
        seen = self._seen.get(ROLE_POOL, namespace_of(owned_by), pool.name)
        if pinned is not None:
            body["spec"]["replicas"] = pinned
        elif seen is None or SEEDED not in annotations_of(seen):
            count = min(seed, _SEED_MAX) if seen is None else replicas_of(seen, seed)
            # Owners are not seeded: what two managers have said, one of them cannot take back.
            metadata = {k: v for k, v in body["metadata"].items() if k != "ownerReferences"}
            seeded = {**body, "metadata": {**metadata, "annotations": {SEEDED: str(count)}}}
            self._made.seeds.append({**seeded, "spec": {**body["spec"], "replicas": count}})
        self._made.keep.append(body)
        if seen is not None:
            status, verdict = report.of_pool(seen, pool, self._placement)
            self._tell(seen, status, verdict)
            self._made.events += [*_scaled(seen, pool, self._seen.now), *_drained(seen, pool, self._seen.now)]

    def _service(
        self, name: str, owned_by: Object, pool: Pool, port: int, owners: Sequence[Wanted] = ()
    ) -> Mapping[str, Any]:
        body = self._head(SERVICE, owned_by, name, {POOL: pool.name, ROLE: pool.role}, owners)
        ports = [{"name": "grpc" if port == GRPC else "http", "port": port, "targetPort": port, "protocol": "TCP"}]
        if port == GRPC:
            ports.append({"name": "metrics", "port": METRICS, "targetPort": METRICS, "protocol": "TCP"})
        body["spec"] = {"selector": {POOL: pool.name}, "ports": ports}
        return body

    def _budget(
        self, name: str, owned_by: Object, labels: Mapping[str, str], owners: Sequence[Wanted], unavailable: int
    ) -> Mapping[str, Any]:
        """The pool's PodDisruptionBudget. Where no member can stand in for another, none may be evicted."""
        body = self._head(BUDGET, owned_by, name, labels, owners)
        limit = {"maxUnavailable": unavailable, "unhealthyPodEvictionPolicy": "AlwaysAllow"}
        body["spec"] = {**limit, "selector": {"matchLabels": {POOL: name}}}
        return body

    def _head(
        self, kind: Any, owned_by: Object, name: str, labels: Mapping[str, str], owners: Sequence[Wanted]
    ) -> dict[str, Any]:
        made = make(kind, namespace_of(owned_by), name, labels=labels, owner_of=owned_by)
        if owners:  # shared: it goes when the last of its owners goes
            shared = [entry for w in owners for entry in owner(w.obj)]
            made["metadata"]["ownerReferences"] = [
                {k: v for k, v in entry.items() if k not in ("controller", "blockOwnerDeletion")} for entry in shared
            ]
        return made

    def _tell(self, obj: Object, body: Mapping[str, Any], said: Sequence[Said]) -> None:
        now = self._seen.now
        self._made.statuses.append((obj, status_of(obj, body, said, now)))
        self._made.events += transitions(obj, said, now)


def revision_of(spec: ModelDeploymentSpec, settings: Settings) -> str:
    """Digest of weights, numerics and layout: sequences never cross it."""
    ffn = (spec.ffn.slices, spec.ffn.groups)
    return digest(
        spec.model.source, spec.dtype.value, spec.numerics.value, ffn, spec.kv.page_tokens, settings.wire_version
    )


def roles_of_parts(parts: Sequence[PoolPart]) -> set[str]:
    """Roles that a plan gave something."""
    return {p.role for p in parts if p.role != "router"}


def _is_native(wanted: Wanted) -> bool:
    return isinstance(wanted.resource, ModelDeployment) and wanted.resource.spec.engine is Engine.NATIVE


def _scaled(seen: Object, pool: Pool, now: str) -> list[dict[str, Any]]:
    """An event when what a pool was granted changes."""
    before = (seen.get("status") or {}).get("granted")
    if before is None or before == pool.wanted or pool.untouched:
        return []
    note = f"{before} -> {pool.wanted} pods"
    return [event(seen, EventReason.SCALED, note, now, mark=f"{seen['metadata']['resourceVersion']}")]


def _drained(seen: Object, pool: Pool, now: str) -> list[dict[str, Any]]:
    """An event for each pod that drained and does not any more; named after the pod, so that it is told once."""
    before = set((seen.get("status") or {}).get("draining") or ())
    working = {name_of(p) for p in pool.pods if is_true(p, "Ready")}
    return [
        event(
            seen, EventReason.DRAINED, f"{name} {'is ended at work' if name in working else 'is done'}", now, mark=name
        )
        for name in sorted(before - set(report.draining(pool)))
    ]
