"""A plan as data: who goes where, what it costs and promises, and how good it is proven to be.

`planner` makes it; `explain` writes it for people, `document` for programs, `picture` draws it, `replan` compares two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from katsura.placement.agents import AgentSummary
from katsura.placement.operate import Point
from katsura.placement.patterns import Column, Refused


@dataclass(frozen=True, slots=True)
class Place:
    """One process on one node."""

    role: str
    node_class: str
    node: str
    accelerators: int
    cores: float
    ram_bytes: float


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance of a column, on concrete nodes."""

    column: Column
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way, and why it was not taken. `hourly_usd` is None where it cannot serve the demand, as far as known."""

    what: str
    hourly_usd: float | None
    why_not: str
    at_least: bool = False
    """No whole plan of it was made: `hourly_usd` is a bound."""


@dataclass(frozen=True, slots=True)
class Relaxation:
    """A change of the question under which every demand is met, and the dollars per hour that it then costs."""

    what: str
    hourly_usd: float
    at_least: bool = False
    """No whole plan of it was made: the linear relaxation meets every demand, for these dollars or more."""


@dataclass(frozen=True, slots=True)
class Marginal:
    """What one more node of a class would change, in dollars per hour (negative saves)."""

    node_class: str
    change_usd: float
    at_most: bool = False
    """Only the linear relaxation was asked: the bound of a plan falls by no more."""


@dataclass(frozen=True, slots=True)
class TableUse:
    """What the table of `service` on `device` says of itself: of its `rows`, run by `engine` (with its version),
    `judged` were foretold by the others when they were left out, with this median error."""

    service: str
    device: str
    engine: str
    rows: int
    judged: int
    median_error: float


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    """A service in the plan: instances, capacity against demand, predicted times, its share of the cost.

    `point` is that of its slowest instance, `error_class` the worst of any.
    """

    name: str
    instances: int
    capacity: float
    demand: float
    unmet: float
    point: Point | None
    hourly_usd: float
    usd_per_million_output: float | None
    joules_per_token: float | None
    error_class: str


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer.

    Attributes:
        nodes_used: by class; hourly_usd, watts: of all used nodes.
        value: of the objective; bound: no plan of these patterns is better; gap: (value - bound) / value.
        pattern_free_bound: dollars per hour if every service ran on its cheapest pattern and nodes were free to cut.
        binding: what limits the plan, in words.
        ended: how the search ended; columns: patterns counted.
    """

    instances: tuple[Instance, ...]
    services: tuple[ServiceSummary, ...]
    nodes_used: Mapping[str, int]
    hourly_usd: float
    watts: float
    objective: str
    value: float
    bound: float
    gap: float
    pattern_free_bound: float
    binding: tuple[str, ...]
    relaxations: tuple[Relaxation, ...]
    alternatives: tuple[Alternative, ...]
    marginals: tuple[Marginal, ...]
    refused: tuple[Refused, ...]
    unknown: tuple[str, ...]
    ended: str
    columns: int
    agents: tuple[AgentSummary, ...] = ()
    tables: tuple[TableUse, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether every demand is met."""
        return all(s.unmet <= 1e-6 for s in self.services)

    @property
    def kept(self) -> bool:
        """Whether every demand is met, and every agent's limit kept."""
        return self.feasible and all(a.kept for a in self.agents)

    @property
    def counts(self) -> dict[str, int]:
        """Instances by column key."""
        counts: dict[str, int] = {}
        for instance in self.instances:
            counts[instance.column.key] = counts.get(instance.column.key, 0) + 1
        return counts
