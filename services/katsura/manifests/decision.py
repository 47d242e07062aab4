"""One call from what a cluster says to what should run where: the operator's door to the planner.

    decision = decide(Situation(bundle, nodes, slices, pods, configs, current))
    decision.pools              per role and class of nodes: how many processes, what each takes, on which nodes
    decision.change.steps       starts and stops in an order that never lacks capacity where there is room
    decision.change.kept, why   whether what runs stays as it is
    decision.document           the PlacementPlan to store; give it back as `current` next time
    decision.change.plan        gap, bound, alternatives with why not, binding constraints, dollars per hour

Pure and total: whatever keeps one deployment or node out of the plan is told in `left_out`, and the rest is planned.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from types import MappingProxyType
from typing import Any

from katsura.domain.errors import FailedPreconditionError, KatsuraError
from katsura.manifests.bundle import Bundle
from katsura.manifests.cluster import observe
from katsura.manifests.kinds import ModelDeployment
from katsura.manifests.problem import Options, build_problem
from katsura.placement import calibration, catalogue, planner
from katsura.placement.calibration import Calibration
from katsura.placement.card import published, read_card
from katsura.placement.document import Current, current_of, document, running
from katsura.placement.pace import basis_of
from katsura.placement.patterns import Memo, enumerate_patterns
from katsura.placement.plan import Place
from katsura.placement.planner import hold_agents
from katsura.placement.problem import Effort, HelperService, ModelService, Pace, Problem, Service
from katsura.placement.replan import Policy, Replan, replan, steps
from katsura.placement.split import member_bytes

_NOTHING = Current(())


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that decides. Objects are parsed JSON as the API server gives them.

    Attributes:
        bundle: the resources of one operator's scope (`manifests.bundle.read_documents` reads them).
        nodes, slices: Nodes and ResourceSlices. pods: of the whole cluster; those with the label
            `cluster.ROLE_LABEL` are ours and take nothing away.
        configs: `config.json` by deployment name; deployments that name a published card need none.
        current: the PlacementPlan in force (`Decision.document` of last time), or what really stands as a `Current`.
        paces: what running replicas showed, by deployment; those that rest on other predictions are left out.
    """

    bundle: Bundle
    nodes: Sequence[Mapping[str, Any]] = ()
    slices: Sequence[Mapping[str, Any]] = ()
    pods: Sequence[Mapping[str, Any]] = ()
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    current: Mapping[str, Any] | Current | None = None
    paces: Mapping[str, tuple[Pace, ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class PoolPart:
    """Equal processes of one role on one class of nodes.

    Attributes:
        owner: the ModelDeployment or MemoryStore they serve. role: `unified`, `attention`, `experts`, `prefill`,
            `decode`, `router` or `memory`.
        instance: the pattern they belong to; of a split, attention and experts of one pattern serve together.
        device: name in the catalogue; resource: what a pod asks for to get it, empty on cores.
        processes: how many. accelerators, cores, ram_bytes: of each. nodes: how many of them on each node.
        weights_bytes: of an expert member on cores, what its weights may take of its memory; 0: it finds out itself.
    """

    owner: str
    role: str
    instance: str
    node_class: str
    device: str
    resource: str
    domain: str
    spot: bool
    processes: int
    accelerators: int
    cores: float
    ram_bytes: float
    nodes: Mapping[str, int]
    weights_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do. `problem`: as it was asked. `left_out`: deployments that could not be planned, by name, with why."""

    problem: Problem
    change: Replan
    pools: tuple[PoolPart, ...]
    document: Mapping[str, Any]
    left_out: Mapping[str, str]


def decide(
    situation: Situation,
    effort: Effort | None = None,
    policy: Policy | None = None,
    options: Options | None = None,
    known: Calibration | None = None,
    memo: Memo | None = None,
) -> Decision:
    """Plan everything of `situation` in one solve, and say how to get there from what stands.

    Where an agent would be late, up to four more solves with tighter times for its models; the document's inputs are
    those of `state` all the same.

    Args:
        effort: how long each solve searches (default: 10 s or a gap of 0.5 %). policy: when a change pays.
        known: measured coefficients; default: those that ship.
        memo: of the decisions before, for a caller who makes many.

    Raises:
        FailedPreconditionError: no deployment can be planned, or there is no node at all.
        InvalidArgumentError: `current` is no PlacementPlan.
    """
    problem, left_out = state(situation, options, known)
    current = situation.current
    standing = current if isinstance(current, Current) else _NOTHING if current is None else current_of(current)
    effort, memo = effort or Effort(), memo or Memo()

    def solve(asked: Problem) -> Replan:
        if not standing.instances:
            return _first(asked, effort, memo)
        return replan(asked, effort, standing, policy, explain=False, memo=memo)

    _, change = hold_agents(problem, solve, lambda made: made.plan)
    change = change.explained()
    return Decision(problem, change, pools(running(change.plan), problem), document(change.plan, problem), left_out)


def state(
    situation: Situation, options: Options | None = None, known: Calibration | None = None
) -> tuple[Problem, Mapping[str, str]]:
    """The problem alone, and who is left out of it with why: `placement.document.inputs_hash` tells whether the plan
    in force answers it already.

    Raises:
        FailedPreconditionError: no deployment can be planned, or there is no node at all.
    """
    configs, left_out = _configs(situation)
    bundle = replace(
        situation.bundle, deployments=tuple(d for d in situation.bundle.deployments if d.metadata.name in configs)
    )
    if left_out and not bundle.deployments:
        raise FailedPreconditionError("; ".join(left_out.values()))
    cluster = observe(bundle, situation.nodes, situation.slices, situation.pods)
    problem = build_problem(cluster, configs, catalogue.built_in(), known or calibration.built_in(), options)
    services = tuple(_paced(problem, s, situation.paces.get(s.name, ())) for s in problem.services)
    return replace(problem, services=services), left_out


def _paced(problem: Problem, service: Service, paces: Sequence[Pace]) -> Service:
    if not isinstance(service, ModelService):
        return service
    hold = tuple(p for p in paces if p.basis == basis_of(problem, service, (p.device,)))
    return replace(service, paces=hold) if hold else service


def pools(made: Current, problem: Problem) -> tuple[PoolPart, ...]:
    """`made` by role and class of nodes, in a fixed order; `placement.document.running` makes a `Current` of a plan."""
    classes = {c.name: c for c in problem.classes}
    services = {s.name: s for s in problem.services}
    helpers = {name for name, s in services.items() if isinstance(s, HelperService)}
    members = {i.key: sum(p.role == "experts" for p in i.places) for i in made.instances}
    grouped: dict[tuple[str, str, str, str], list[Place]] = defaultdict(list)
    for instance in made.instances:
        for place in instance.places:
            kind = (instance.service, place.role, instance.key, place.node_class)
            grouped[kind].append(place)
    parts = []
    for (service, role, key, name), places in sorted(grouped.items()):
        c, first = classes[name], places[0]
        parts.append(
            PoolPart(
                owner=service.removesuffix(role)[:-1] if service in helpers else service,
                role=role,
                instance=key,
                node_class=name,
                device=(c.device or c.core).name,
                resource=c.device.resource if c.device is not None and first.accelerators else "",
                domain=c.domain,
                spot=c.spot,
                processes=len(places),
                accelerators=first.accelerators,
                cores=first.cores,
                ram_bytes=first.ram_bytes,
                nodes=MappingProxyType(dict(sorted(Counter(p.node for p in places).items()))),
                weights_bytes=_weights_bytes(services.get(service), first, members[key], problem),
            )
        )
    return tuple(parts)


def _weights_bytes(service: Service | None, place: Place, members: int, problem: Problem) -> int:
    """What a member's weights may take: its part of two copies, but no more than the plan in force gave it memory."""
    if place.role != "experts" or place.accelerators or not isinstance(service, ModelService):
        return 0
    wanted = ceil(member_bytes(service.card, service.precision, members, 1, service.units))
    return max(0, min(wanted, int(place.ram_bytes - problem.calibration.helpers["process_ram_bytes"])))


def _first(problem: Problem, effort: Effort, memo: Memo) -> Replan:
    solution = planner.solve(problem, effort, patterns=enumerate_patterns(problem, memo))
    made = solution.plan
    order = steps(problem, [i.column for i in made.instances], _NOTHING, made)
    return Replan(made, order, False, "nothing stands", 0.0, 0.0, solution)


def _configs(situation: Situation) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    found: dict[str, Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    for deployment in situation.bundle.deployments:
        name = deployment.metadata.name
        config = situation.configs.get(name) or _published(deployment)
        try:
            if config is None:
                raise FailedPreconditionError(
                    f"{name}: the sizes of {deployment.spec.model.source} are not known yet; set spec.model.card to a "
                    f"published model of the same sizes ({', '.join(published())})",
                    field="spec.model.source",
                )
            read_card(config, name)
        except KatsuraError as error:
            left_out[name] = str(error)
        else:
            found[name] = config
    return found, left_out


def _published(deployment: ModelDeployment) -> Mapping[str, Any] | None:
    card = deployment.spec.model.card
    return None if card is None else published().get(card)
