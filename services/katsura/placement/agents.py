"""An agent's graph as demand: how often each model, tool and memory call runs, and how long the longest path takes.

Nodes are calls, edges lead on with a probability; loops are allowed (a loop taken with probability p is expected
1 / (1 - p) times). Expected visits solve v = start + P^T v. A caller turns `demand` into services of a `problem`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from katsura.domain.errors import InvalidArgumentError

_ROUNDS = 100_000
_SMALL = 1e-12


@dataclass(frozen=True, slots=True)
class Call:
    """A node: `service` answers it in `seconds`; a tool keeps `seconds` busy and asks no service."""

    name: str
    service: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Edge:
    """After `before` comes `after`, with this probability."""

    before: str
    after: str
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class AgentGraph:
    """Calls and what follows them. It begins at the first call.

    Raises:
        InvalidArgumentError: an edge names no call, or probabilities out of a call exceed 1.
    """

    calls: tuple[Call, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        names = {c.name for c in self.calls}
        out: dict[str, float] = defaultdict(float)
        for edge in self.edges:
            if not {edge.before, edge.after} <= names:
                raise InvalidArgumentError(f"edge {edge.before} -> {edge.after} names no call", field="edges")
            out[edge.before] += edge.probability
        too_much = [name for name, total in out.items() if total > 1 + 1e-9]
        if too_much:
            raise InvalidArgumentError(
                f"after {too_much[0]} the probabilities add up to {out[too_much[0]]:.3f}; at most 1", field="edges"
            )

    def visits(self) -> dict[str, float]:
        """Expected times each call runs per run of the agent.

        Raises:
            InvalidArgumentError: a loop that is never left.
        """
        visits = dict.fromkeys((c.name for c in self.calls), 0.0)
        wave = {self.calls[0].name: 1.0}
        for _ in range(_ROUNDS):
            following: dict[str, float] = defaultdict(float)
            for name, weight in wave.items():
                visits[name] += weight
            for edge in self.edges:
                if edge.before in wave:
                    following[edge.after] += wave[edge.before] * edge.probability
            wave = {name: weight for name, weight in following.items() if weight > _SMALL}
            if not wave:
                return visits
        raise InvalidArgumentError("a loop of the agent is never left; give its edges probabilities below 1")

    def demand(self, runs_per_s: float) -> dict[str, float]:
        """Requests per second of each service at `runs_per_s` runs."""
        demand: dict[str, float] = defaultdict(float)
        visits = self.visits()
        for call in self.calls:
            if call.service:
                demand[call.service] += runs_per_s * visits[call.name]
        return dict(demand)

    def mean_seconds(self) -> float:
        """Expected length of a run: calls follow one another."""
        visits = self.visits()
        return sum(visits[c.name] * c.seconds for c in self.calls)

    def concurrent(self, runs_per_s: float) -> dict[str, float]:
        """Calls in flight by name (Little's law): sandboxes that a tool needs, at least."""
        visits = self.visits()
        return {c.name: runs_per_s * visits[c.name] * c.seconds for c in self.calls}

    def critical_path(self) -> tuple[tuple[str, ...], float]:
        """The longest path that is taken without going round a loop again, and its seconds with loops expected."""
        visits, seconds = self.visits(), {c.name: c.seconds for c in self.calls}
        follow: Mapping[str, list[str]] = self._forward()
        best: dict[str, tuple[tuple[str, ...], float]] = {}

        def longest(name: str) -> tuple[tuple[str, ...], float]:
            if name not in best:
                rest = max((longest(after) for after in follow.get(name, ())), key=lambda r: r[1], default=((), 0.0))
                own = seconds[name] * max(1.0, visits[name])
                best[name] = ((name, *rest[0]), own + rest[1])
            return best[name]

        return longest(self.calls[0].name)

    def _forward(self) -> dict[str, list[str]]:
        """Edges without those that lead back to a call that came first (depth first, in the order of `edges`)."""
        follow: dict[str, list[str]] = defaultdict(list)
        done: set[str] = set()

        def walk(name: str, above: Sequence[str]) -> None:
            for edge in self.edges:
                if edge.before == name and edge.after not in (*above, name) and edge.probability > 0:
                    follow[name].append(edge.after)
                    if edge.after not in done:
                        walk(edge.after, (*above, name))
            done.add(name)

        walk(self.calls[0].name, ())
        return follow
