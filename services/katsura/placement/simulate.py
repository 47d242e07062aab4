"""A plan under a trace: a discrete-event run of every instance with the cost model's own step times.

Each instance shares its decode among the sequences of its batch: with n running, each draws a token every itl(n). A
session returns to the instance that holds its prefix while that has room, else to one with more. Deterministic: all
chance is in the trace. `bench` and tests call `simulate`; what comes out is simulated, not measured.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from katsura.placement.cost import Layout, decode_terms, prefill_floor_s
from katsura.placement.patterns import Column, pool_of, units_of
from katsura.placement.plan import Plan
from katsura.placement.problem import UNIFIED, ModelService, Problem
from katsura.placement.split import prefill_s, step_s

_ASKED = 32
"""Instances up to which each new session asks all for their load."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: `prompt` tokens of which `shared` stand in its session's earlier turns, and `output` to draw."""

    at_s: float
    service: str
    session: int
    prompt: int
    output: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one service's requests got. Seconds; quantiles by nearest rank."""

    requests: int
    ttft_s: Mapping[int, float]
    itl_s: Mapping[int, float]
    slo_kept: float
    prefix_kept: float
    tokens_s: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """A whole run: by service, with its length and what the plan's nodes cost meanwhile."""

    services: Mapping[str, Outcome]
    seconds: float
    usd: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Step time by batch, and a prompt's time by its new tokens, of one column."""

    batches: tuple[int, ...]
    steps: tuple[float, ...]
    prompt_s: float
    fixed_s: float
    places: int

    def step_s(self, running: int) -> float:
        """Seconds between tokens with `running` sequences, interpolated."""
        if running <= self.batches[0]:
            return self.steps[0]
        i = min(bisect_left(self.batches, running), len(self.batches) - 1)
        (b0, b1), (s0, s1) = self.batches[i - 1 : i + 1], self.steps[i - 1 : i + 1]
        return s0 + (s1 - s0) * (running - b0) / (b1 - b0)


def curve_of(problem: Problem, column: Column, service: ModelService) -> Curve:
    """The cost model's answers for `column` at batches up to its planned one."""
    assert column.point is not None
    classes = {c.name: c for c in problem.classes}
    units = []
    for m in column.members:
        wanted = m.accelerators or int(m.cores)
        units.append(next(u for u in units_of(classes[m.node_class]) if u.count == wanted))
    places = column.point.batch
    batches = tuple(sorted({1, *(2**i for i in range(1, places.bit_length())), places}))
    lead = units[0]
    c = problem.calibration.of(lead.device)
    card, precision, load = service.card, service.precision, service.load
    if column.topology == UNIFIED:
        layout = Layout() if lead.is_cpu else Layout(lead.count, per_node=lead.count)
        steps = [c.step_s(decode_terms(card, lead.device, precision, layout, b, load), precision) for b in batches]
        prompt = c.first[1] * prefill_floor_s(card, lead.device, precision, layout, load)
    else:
        pool = pool_of(problem, units[0], units[1], column.members[0].count, column.members[1].count)
        prompt = prefill_s(card, precision, pool, load)
        share = prompt / load.output / column.members[0].count
        micro = column.point.micro_batches
        steps = [step_s(card, precision, pool, b, load, min(micro, b)) + b * share for b in batches]
    return Curve(batches, tuple(steps), prompt / load.new_prompt, c.first[0], places)


@dataclass(slots=True)
class _Server:
    """One instance: `drawn` counts the tokens that a sequence present since ever would have drawn."""

    curve: Curve
    now: float = 0.0
    drawn: float = 0.0
    running: list[tuple[float, int]] = field(default_factory=list)
    queue: deque[int] = field(default_factory=deque)

    @property
    def load(self) -> float:
        return (len(self.running) + len(self.queue)) / self.curve.places

    def advance(self, to: float) -> None:
        if self.running:
            self.drawn += (to - self.now) / self.curve.step_s(len(self.running))
        self.now = to

    def next_end(self) -> float | None:
        if not self.running:
            return None
        return self.now + max(0.0, self.running[0][0] - self.drawn) * self.curve.step_s(len(self.running))


@dataclass(slots=True)
class _Books:
    """What happened to each request."""

    first: dict[int, float] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)


class _Run:
    def __init__(self, plan: Plan, problem: Problem, arrivals: Sequence[Arrival]) -> None:
        services = {s.name: s for s in problem.services if isinstance(s, ModelService)}
        curves: dict[str, Curve] = {}
        self.servers: list[_Server] = []
        self.of_service: dict[str, list[int]] = defaultdict(list)
        for instance in plan.instances:
            column = instance.column
            if column.service in services:
                if column.key not in curves:
                    curves[column.key] = curve_of(problem, column, services[column.service])
                self.of_service[column.service].append(len(self.servers))
                self.servers.append(_Server(curves[column.key]))
        self.arrivals = arrivals
        self.books = _Books()
        self.home: dict[tuple[str, int], int] = {}
        self.events: list[tuple[float, int, int]] = []
        self.version = [0] * len(self.servers)

    def go(self) -> None:
        turn = 0
        while turn < len(self.arrivals) or self.events:
            if not self.events or (turn < len(self.arrivals) and self.arrivals[turn].at_s <= self.events[0][0]):
                self._arrive(turn)
                turn += 1
                continue
            at, index, version = heapq.heappop(self.events)
            if version == self.version[index]:
                self._end(at, index)

    def _arrive(self, number: int) -> None:
        a = self.arrivals[number]
        candidates = self.of_service[a.service]
        home = self.home.get((a.service, a.session))
        if home is None or self.servers[home].load >= 1.0:
            index = min(_some(candidates, a.session), key=lambda i: (self.servers[i].load, i))
        else:
            index = home
            self.books.kept.add(number)
        self.home[a.service, a.session] = index
        server = self.servers[index]
        server.advance(a.at_s)
        if len(server.running) < server.curve.places:
            self._begin(server, number)
        else:
            server.queue.append(number)
        self._schedule(index)

    def _begin(self, server: _Server, number: int) -> None:
        a = self.arrivals[number]
        new = a.prompt - (a.shared if number in self.books.kept else 0)
        prefill = server.curve.fixed_s + server.curve.prompt_s * max(1, new)
        step = server.curve.step_s(len(server.running) + 1)
        self.books.begun[number] = server.now
        self.books.first[number] = server.now + prefill + step
        # The prompt holds a place for its prefill as well: that time in tokens at the present pace.
        heapq.heappush(server.running, (server.drawn + a.output + prefill / step, number))

    def _end(self, at: float, index: int) -> None:
        server = self.servers[index]
        server.advance(at)
        while server.running and server.running[0][0] <= server.drawn + 1e-6:
            _, number = heapq.heappop(server.running)
            self.books.ended[number] = at
            if server.queue:
                self._begin(server, server.queue.popleft())
        self._schedule(index)

    def _schedule(self, index: int) -> None:
        self.version[index] += 1
        end = self.servers[index].next_end()
        if end is not None:
            heapq.heappush(self.events, (end, index, self.version[index]))


def _some(candidates: Sequence[int], session: int) -> Sequence[int]:
    """All of a few, else eight picked by the session's number: nearly as good, at the same cost for any number."""
    if len(candidates) <= _ASKED:
        return candidates
    return [candidates[(session * 2654435761 + k * 40503 * (session + 1)) % len(candidates)] for k in range(8)]


def simulate(plan: Plan, problem: Problem, arrivals: Iterable[Arrival]) -> Simulated:
    """Run `plan` under `arrivals` (any order) until all are answered."""
    ordered = sorted(arrivals, key=lambda a: (a.at_s, a.service, a.session))
    run = _Run(plan, problem, [a for a in ordered if a.service in {i.column.service for i in plan.instances}])
    run.go()
    seconds = max(run.books.ended.values(), default=0.0)
    slos = {s.name: s.slo for s in problem.services if isinstance(s, ModelService)}
    by_service: dict[str, list[int]] = defaultdict(list)
    for number, a in enumerate(run.arrivals):
        by_service[a.service].append(number)
    outcomes = {}
    for name, numbers in by_service.items():
        ttft = [run.books.first[n] - run.arrivals[n].at_s for n in numbers]
        itl = [max(0.0, run.books.ended[n] - run.books.first[n]) / max(1, run.arrivals[n].output - 1) for n in numbers]
        slo = slos[name]
        kept = sum(
            (slo.itl_s is None or i <= slo.itl_s) and (slo.ttft_s is None or t <= slo.ttft_s)
            for i, t in zip(itl, ttft, strict=True)
        )
        outcomes[name] = Outcome(
            requests=len(numbers),
            ttft_s=_quantiles(ttft),
            itl_s=_quantiles(itl),
            slo_kept=kept / len(numbers),
            prefix_kept=sum(n in run.books.kept for n in numbers) / len(numbers),
            tokens_s=sum(run.arrivals[n].output for n in numbers) / seconds,
        )
    return Simulated(outcomes, seconds, plan.hourly_usd * seconds / 3600)


def _quantiles(values: Sequence[float]) -> dict[int, float]:
    ordered = sorted(values)
    return {q: ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))] for q in (50, 90, 99)}
