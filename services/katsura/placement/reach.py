"""Demands as far as a cluster could come near them: beside an absurd one every price in the program would be noise.

`planner` searches with what comes out, and says of the plan what it serves of the real demand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from katsura.placement.patterns import Column
from katsura.placement.problem import HelperService, ModelService, NodeClass, Objective, Problem

MORE_NODES_MAX: Final = 64
"""Most nodes of a class that a way to serve everything may add."""
_BEYOND: Final = 4.0
"""How far beyond reach a demand may lie, in multiples of what could be served at most."""


def within_reach(problem: Problem, columns: Sequence[Column]) -> Problem:
    """`problem` with less of a demand of which all nodes, and `MORE_NODES_MAX` of each class besides, serve no quarter.

    What serves the most of one serves the most of the other. Demands that can be met stay as they are.
    """
    if problem.objective not in (Objective.COST, Objective.ENERGY):
        return problem  # the others' programs hold parts of demands, not prices of serving them
    most = _most(problem, columns)
    part = {
        s.name: _BEYOND * most[s.name] / s.requests_s
        for s in problem.services
        if isinstance(s, ModelService) and s.requests_s > _BEYOND * most[s.name] > 0
    }
    if not part:
        return problem
    return replace(problem, services=tuple(_less(s, part) for s in problem.services))


def _less(service: ModelService | HelperService, part: dict[str, float]) -> ModelService | HelperService:
    if isinstance(service, ModelService):
        return replace(service, requests_s=service.requests_s * part.get(service.name, 1.0))
    asked = {name: share * part.get(name, 1.0) for name, share in service.follows.items()}
    left = 1 - sum(service.follows.values()) + sum(asked.values())
    follows = {name: share / left for name, share in asked.items()}
    return replace(service, requests_s=service.requests_s * left, follows=MappingProxyType(follows))


def _most(problem: Problem, columns: Sequence[Column]) -> dict[str, float]:
    """Requests per second by service that no plan exceeds: every unit of every class leads its best column."""
    classes = {c.name: c for c in problem.classes}
    best: dict[tuple[str, str, bool], float] = defaultdict(float)
    for column in columns:
        lead = column.members[0]
        each = column.requests_s / (lead.count * (lead.accelerators or lead.cores))
        key = column.service, lead.node_class, bool(lead.accelerators)
        best[key] = max(best[key], each)
    most: dict[str, float] = defaultdict(float)
    for (service, name, accelerated), each in best.items():
        most[service] += each * _units(classes[name], accelerated)
    return most


def _units(c: NodeClass, accelerated: bool) -> float:
    return (len(c.nodes) + MORE_NODES_MAX) * (c.accelerators if accelerated else c.cores)
