"""A plan as a PlacementPlan document, and what runs now read back from one.

The form is `plan.schema.json`; `katsura plan --json` prints it, `--against` reads it, the operator keeps it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.agents import AgentSummary
from katsura.placement.operate import Point
from katsura.placement.pack import Held
from katsura.placement.plan import Instance, Place, Plan
from katsura.placement.problem import PLANNED_ONLY, ModelService, Problem

API_VERSION = "katsura.dev/v1alpha1"


@dataclass(frozen=True, slots=True)
class Running:
    """An instance that stands now: its column's key, its service, and its processes by (role, class, node)."""

    key: str
    service: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Current:
    """What runs now."""

    instances: tuple[Running, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Instances by column key."""
        counts: dict[str, int] = defaultdict(int)
        for instance in self.instances:
            counts[instance.key] += 1
        return dict(counts)

    @property
    def held(self) -> Held:
        """Nodes by (service, role, class), as `pack` keeps them."""
        held: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for instance in self.instances:
            for p in instance.places:
                held[instance.service, p.role, p.node_class].append(p.node)
        return held


def document(plan: Plan, problem: Problem, name: str = "plan") -> dict[str, Any]:
    """The PlacementPlan of `plan`."""
    return {
        "apiVersion": API_VERSION,
        "kind": "PlacementPlan",
        "metadata": {"name": name},
        "spec": {
            "objective": plan.objective,
            "confidence": problem.confidence,
            "inputsHash": inputs_hash(problem),
        },
        "status": {
            "feasible": plan.feasible,
            "gap": round(plan.gap, 6),
            "value": _short(plan.value),
            "bound": _short(plan.bound),
            "patternFreeBound": _short(plan.pattern_free_bound),
            "hourlyUsd": _short(plan.hourly_usd),
            "watts": _short(plan.watts),
            "patterns": plan.columns,
            "search": plan.ended,
            "services": [_service(plan, i) for i in range(len(plan.services))],
            "assignments": _assignments(plan.instances),
            "nodesUsed": dict(plan.nodes_used),
            "constraintsBinding": list(plan.binding),
            "relaxations": [
                {"what": r.what, "hourlyUsd": _short(r.hourly_usd), "atLeast": r.at_least} for r in plan.relaxations
            ],
            "alternatives": [
                {"what": a.what, "hourlyUsd": _maybe(a.hourly_usd), "whyNot": a.why_not, "atLeast": a.at_least}
                for a in plan.alternatives
            ],
            "oneMoreNode": [
                {"nodeClass": m.node_class, "changeUsd": _short(m.change_usd), "atMost": m.at_most}
                for m in plan.marginals
            ],
            "refused": [
                {"service": r.service, "topology": r.topology, "device": r.device, "reason": r.reason, "why": r.detail}
                for r in plan.refused
            ],
            "leftOut": list(plan.unknown),
            "agents": [_agent(a) for a in plan.agents],
            "tables": [
                {
                    "service": t.service,
                    "device": t.device,
                    "engine": t.engine,
                    "rows": t.rows,
                    "judged": t.judged,
                    "medianError": _short(t.median_error),
                }
                for t in plan.tables
            ],
            # Told where there are any: a cluster whose definitions are older would drop it from each plan it stores.
            **({"guessedSizes": guessed} if (guessed := _guessed(problem)) else {}),
        },
    }


def _guessed(problem: Problem) -> list[dict[str, Any]]:
    return [
        {"service": s.name, "family": s.card.family, "parameters": s.card.parameters}
        for s in problem.services
        if isinstance(s, ModelService) and not s.card.exact
    ]


def inputs_hash(problem: Problem) -> str:
    """A digest of everything that decides the plan: equal problems have equal hashes."""
    return sha256(repr(problem).encode()).hexdigest()[:16]


def read_current(text: str) -> Current:
    """What a PlacementPlan says is placed, from its JSON text.

    Raises:
        InvalidArgumentError: the text is no PlacementPlan.
    """
    try:
        return current_of(json.loads(text))
    except ValueError as error:
        raise _no_plan(f"no JSON: {error}") from error


def current_of(data: Any) -> Current:
    """What a parsed PlacementPlan says is placed.

    Raises:
        InvalidArgumentError: it is no PlacementPlan.
    """
    try:
        if data["kind"] != "PlacementPlan":
            raise _no_plan(f"its kind is {data['kind']!r}")
        instances = [
            Running(a["pattern"], a["service"], tuple(_place(p) for p in instance["places"]))
            for a in data["status"]["assignments"]
            for instance in a["instances"]
        ]
    except KeyError as error:
        raise _no_plan(f"it has no {error}") from error
    except (ValueError, TypeError) as error:
        raise _no_plan(str(error)) from error
    return Current(tuple(instances))


def _no_plan(why: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"not a PlacementPlan as `katsura plan --json` prints it: {why}", field="against")


def running(plan: Plan) -> Current:
    """`plan` as what would run once it is carried out."""
    return Current(tuple(Running(i.column.key, i.column.service, i.places) for i in plan.instances))


@cache
def schema() -> Mapping[str, Any]:
    """The JSON schema of `document`."""
    made: Mapping[str, Any] = json.loads(resources.files(__package__).joinpath("plan.schema.json").read_text())
    return made


def _assignments(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    grouped: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        grouped[instance.column.key].append(instance)
    made = []
    for key, same in grouped.items():
        column = same[0].column
        made.append(
            {
                "service": column.service,
                "topology": column.topology,
                "plannedOnly": column.topology in PLANNED_ONLY,
                "pattern": key,
                "requestsPerSecond": _short(column.requests_s),
                "microBatches": column.point.micro_batches if column.point else 1,
                "stageLayers": list(column.point.stages) if column.point else [],
                "instances": [{"places": [_place_out(p) for p in i.places]} for i in same],
            }
        )
    return made


def _place_out(p: Place) -> dict[str, Any]:
    return {
        "role": p.role,
        "nodeClass": p.node_class,
        "node": p.node,
        "accelerators": p.accelerators,
        "cores": round(p.cores, 9),  # parts of a node must add up to no more than it when they are read back
        "memoryBytes": round(p.ram_bytes),
    }


def _place(entry: Mapping[str, Any]) -> Place:
    return Place(
        str(entry["role"]),
        str(entry["nodeClass"]),
        str(entry["node"]),
        int(entry["accelerators"]),
        float(entry["cores"]),
        float(entry["memoryBytes"]),
    )


def _service(plan: Plan, index: int) -> dict[str, Any]:
    s = plan.services[index]
    return {
        "name": s.name,
        "instances": s.instances,
        "capacityPerSecond": _short(s.capacity),
        "demandPerSecond": _short(s.demand),
        "unmetShare": _short(s.unmet),
        "hourlyUsd": _short(s.hourly_usd),
        "usdPerMillionOutputTokens": _maybe(s.usd_per_million_output),
        "joulesPerToken": _maybe(s.joules_per_token),
        "estimate": s.error_class,
        "point": _point(s.point) if s.point else None,
    }


def _agent(a: AgentSummary) -> dict[str, Any]:
    return {
        "name": a.name,
        "runsPerSecond": _short(a.runs_s),
        "meanSeconds": _short(a.mean_s),
        "longestPath": list(a.path),
        "longestPathSeconds": _short(a.path_s),
        "limitSeconds": _maybe(a.limit_s),
        "kept": a.kept,
        "calls": [
            {
                "name": c.name,
                "service": c.service,
                "visits": _short(c.visits),
                "seconds": _short(c.seconds),
                "atOnce": _short(c.at_once),
            }
            for c in a.calls
        ],
    }


def _point(p: Point) -> dict[str, Any]:
    return {
        "batch": p.batch,
        "itlMs": _short(p.itl_s * 1e3),
        "ttftMs": _short(p.ttft_s * 1e3),
        **({} if p.margin is None else {"itlMargin": _short(p.margin)}),
        "limitedBy": p.limit,
        "linkBytesPerSecond": _short(p.link_bytes_s),
    }


def _short(value: float) -> float:
    """Six significant digits: enough for anybody, and the same on every machine."""
    return float(f"{value:.6g}")


def _maybe(value: float | None) -> float | None:
    return None if value is None else _short(value)
