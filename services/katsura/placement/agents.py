"""An agent's graph as demand: how often each model, tool and memory call runs, and how long the longest path takes.

Nodes are calls, edges lead on with a probability; loops are allowed (a loop taken with probability p is expected
1 / (1 - p) times). Expected visits solve v = start + P^T v. `manifests.demand` makes graphs of Agents and adds their
demand to that of the models; `summarise` says how long runs take once a plan has told what a call of a model takes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.operate import Point

_SMALL = 1e-9
"""Probability of leaving a loop below which it is taken to be never left."""


@dataclass(frozen=True, slots=True)
class Call:
    """A node: `service` answers it with `output` tokens in `seconds`; a tool is busy for `seconds` and asks no service.

    Of a model's call the seconds are what a plan predicts (`timed`).
    """

    name: str
    service: str
    seconds: float
    output: int = 0


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
        InvalidArgumentError: no call, two of one name, an edge that names none, or probabilities out of a call that
            exceed 1.
    """

    calls: tuple[Call, ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        names = {c.name for c in self.calls}
        if not names or len(names) < len(self.calls):
            raise InvalidArgumentError("there must be a call, and no two of one name", field="calls")
        out: dict[str, float] = defaultdict(float)
        for edge in self.edges:
            if not {edge.before, edge.after} <= names:
                raise InvalidArgumentError(f"edge {edge.before} -> {edge.after} names no call", field="edges")
            out[edge.before] += edge.probability
        too_much = [name for name, total in out.items() if total > 1 + 1e-9]
        if too_much:
            raise InvalidArgumentError(
                f"after {too_much[0]} the probabilities add up to {out[too_much[0]]:.6g}; at most 1", field="edges"
            )

    def visits(self) -> dict[str, float]:
        """Expected times each call runs per run of the agent.

        Raises:
            InvalidArgumentError: a loop that is never left.
        """
        names, rows = [c.name for c in self.calls], self._balance()
        # Gauss elimination; a row of a loop that is never left comes to nothing.
        for i in range(len(names)):
            if rows[i][i] < _SMALL:
                raise InvalidArgumentError(
                    "a loop of the agent is never left; give its edges probabilities below 1", field="edges"
                )
            for other in range(len(names)):
                factor = rows[other][i] / rows[i][i]
                if other != i and factor:
                    rows[other] = [mine - factor * of for mine, of in zip(rows[other], rows[i], strict=True)]
        return {name: rows[i][-1] / rows[i][i] for i, name in enumerate(names)}

    def _balance(self) -> list[list[float]]:
        """Rows of v - P^T v = start, the start in the last column; edges out of calls that no run reaches count for
        nothing."""
        place = {c.name: i for i, c in enumerate(self.calls)}
        reached, ahead = {self.calls[0].name}, [self.calls[0].name]
        while ahead:
            name = ahead.pop()
            found = {e.after for e in self.edges if e.before == name and e.probability > 0} - reached
            reached |= found
            ahead += found
        rows = [[float(i == k) for k in range(len(place))] + [float(i == 0)] for i in range(len(place))]
        for edge in self.edges:
            if edge.before in reached:
                rows[place[edge.after]][place[edge.before]] -= edge.probability
        return rows

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


@dataclass(frozen=True, slots=True)
class AgentRuns:
    """`runs_s` runs per second of `graph`, whose longest path may last `limit_s`."""

    name: str
    graph: AgentGraph
    runs_s: float
    limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class CallSummary:
    """A call in a plan: expected visits per run, seconds of each, and how many are under way at once (Little's law)."""

    name: str
    service: str
    visits: float
    seconds: float
    at_once: float


@dataclass(frozen=True, slots=True)
class AgentSummary:
    """Runs under a plan: expected seconds, and the longest path with loops taken as often as expected.

    `lacks` names services without an instance; nothing is timed then.
    """

    name: str
    runs_s: float
    mean_s: float
    path: tuple[str, ...]
    path_s: float
    limit_s: float | None
    calls: tuple[CallSummary, ...]
    lacks: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the longest path keeps its limit."""
        return not self.lacks and (self.limit_s is None or self.path_s <= self.limit_s)


def timed(graph: AgentGraph, points: Mapping[str, Point]) -> AgentGraph:
    """`graph` with the seconds that `points` promise for calls of models; a service without a point takes none."""

    def seconds(call: Call) -> float:
        if call.service not in points:
            return call.seconds
        point = points[call.service]
        return point.ttft_s + max(0, call.output - 1) * point.itl_s

    return replace(graph, calls=tuple(replace(c, seconds=seconds(c)) for c in graph.calls))


def summarise(runs: AgentRuns, points: Mapping[str, Point]) -> AgentSummary:
    """How runs go where each service runs at its point."""
    graph = timed(runs.graph, points)
    visits, at_once, (path, path_s) = graph.visits(), graph.concurrent(runs.runs_s), graph.critical_path()
    return AgentSummary(
        name=runs.name,
        runs_s=runs.runs_s,
        mean_s=graph.mean_seconds(),
        path=path,
        path_s=path_s,
        limit_s=runs.limit_s,
        calls=tuple(CallSummary(c.name, c.service, visits[c.name], c.seconds, at_once[c.name]) for c in graph.calls),
        lacks=tuple(sorted({c.service for c in graph.calls if c.service} - set(points))),
    )
