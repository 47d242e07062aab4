"""A plan under a trace: a discrete-event run of every instance with the cost model's own step times.

Each step of an instance draws a token of every running sequence and takes a chunk of the first waiting prompt, as
engines with continuous batching do. A session returns to the instance that holds its prefix while that has room, else
to one with more. Replans may happen on the way: what starts loads first, what stops finishes what it has begun.
Deterministic: all chance is in the trace. Memory holds what is in flight, never the trace: a million sessions are a
matter of minutes. What comes out is simulated, not measured; `bench/simulator.py` compares it with real runs.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.curve import Curve, curve_of
from katsura.placement.document import Running
from katsura.placement.operate import Slo
from katsura.placement.plan import Plan
from katsura.placement.problem import ModelService, Problem
from katsura.placement.replan import Replan, where

_ASKED: Final = 32
"""Instances up to which each new session asks all for their load."""
_HOMES: Final = 1 << 18
"""Sessions whose instance is remembered; of older ones no prefix is held any more."""
_TOLD_EVERY: Final = 4096
_FINE: Final = math.log(1.01)

Progress = Callable[[float, int], None]
"""Told now and then: simulated seconds, requests that arrived."""


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
class Change:
    """A replan that is carried out from `at_s` on: what starts serves `load_s` later, then what stops is drained."""

    at_s: float
    replan: Replan
    load_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one service's requests got. Seconds; quantiles to 1 %."""

    requests: int
    ttft_s: Mapping[int, float]
    itl_s: Mapping[int, float]
    itl_mean_s: float
    slo_kept: float
    prefix_kept: float
    tokens_s: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """A whole run: by service, with its length, what its nodes cost meanwhile, and instances that replans started.

    Attributes:
        broken: stops that came before their replacement. rehomed: turns whose prefix a stopped instance had held.
    """

    services: Mapping[str, Outcome]
    seconds: float
    usd: float
    moves: int = 0
    move_usd: float = 0.0
    broken: int = 0
    rehomed: int = 0


@dataclass(slots=True)
class _Spread:
    """Counts of values in buckets that are 1 % wide."""

    counts: Counter[int] = field(default_factory=Counter)
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[round(math.log(max(value, 1e-9)) / _FINE)] += 1
        self.total += value

    def quantiles(self) -> dict[int, float]:
        number, below = self.counts.total(), 0
        found: dict[int, float] = {}
        wanted = {q: min(number - 1, int(q / 100 * number)) for q in (50, 90, 99)}
        for bucket in sorted(self.counts):
            below += self.counts[bucket]
            for q, rank in wanted.items():
                if rank < below:
                    found.setdefault(q, math.exp(bucket * _FINE))
        return found


@dataclass(slots=True)
class _Books:
    """What one service's requests got so far."""

    slo: Slo
    ttft: _Spread = field(default_factory=_Spread)
    itl: _Spread = field(default_factory=_Spread)
    requests: int = 0
    tokens: int = 0
    kept: int = 0
    held: int = 0

    def add(self, request: _Request, ended: float, fixed_s: float) -> None:
        arrival = request.arrival
        ttft = request.first + fixed_s - arrival.at_s
        itl = max(0.0, ended - request.first) / max(1, arrival.output - 1)
        self.requests += 1
        self.tokens += arrival.output
        self.held += request.held
        good = (self.slo.itl_s is None or itl <= self.slo.itl_s) and (
            self.slo.ttft_s is None or ttft <= self.slo.ttft_s
        )
        self.kept += good
        self.ttft.add(ttft)
        self.itl.add(itl)

    def outcome(self, seconds: float) -> Outcome:
        return Outcome(
            requests=self.requests,
            ttft_s=self.ttft.quantiles(),
            itl_s=self.itl.quantiles(),
            itl_mean_s=self.itl.total / self.requests,
            slo_kept=self.kept / self.requests,
            prefix_kept=self.held / self.requests,
            tokens_s=self.tokens / seconds if seconds else 0.0,
        )


@dataclass(slots=True, eq=False)
class _Request:
    arrival: Arrival
    held: bool
    first: float = 0.0


@dataclass(slots=True)
class _Server:
    """One instance: `drawn` counts the tokens that a sequence present since ever would have drawn, `taken` those of
    prompts that were computed, `asked` those that came; `chunk` is where this step's prompt tokens begin and end.
    `takes` are its cores on nodes with too few of them; of its pace it has `share`, as long as others want theirs."""

    curve: Curve
    number: int
    open_s: float = 0.0
    closed: bool = False
    now: float = 0.0
    drawn: float = 0.0
    taken: float = 0.0
    running: list[tuple[float, int, _Request]] = field(default_factory=list)
    prompts: deque[tuple[float, _Request]] = field(default_factory=deque)
    queue: deque[_Request] = field(default_factory=deque)
    asked: float = 0.0
    chunk: tuple[float, float] = (0.0, 0.0)
    version: int = 0
    serial: int = 0
    takes: Mapping[str, float] = field(default_factory=dict)
    busy: bool = False
    share: float = 1.0

    @property
    def load(self) -> float:
        return (len(self.running) + len(self.prompts) + len(self.queue)) / self.curve.places

    def _pace(self) -> tuple[float, float]:
        """Tokens per second of each running sequence, and of prompts."""
        draw, take = self._own_pace()
        return draw * self.share, take * self.share

    def _own_pace(self) -> tuple[float, float]:
        step = self.curve.step_s(len(self.running))
        if not self.prompts:
            return (1 / step if step else 0.0), 0.0
        if self.curve.aside:
            return (1 / step if step else 0.0), 1 / self.curve.prompt_s
        size = self.chunk[1] - self.chunk[0]
        step += self.curve.prompt_s * size
        return 1 / step, size / step

    def advance(self, to: float) -> None:
        draw, take = self._pace()
        self.drawn += draw * (to - self.now)
        self.taken += take * (to - self.now)
        self.now = to

    def next_s(self) -> float | None:
        """When the next prompt or answer is through."""
        draw, take = self._pace()
        times = []
        if self.prompts:
            times.append((self.chunk[1] - self.taken) / take)
        if self.running:
            times.append((self.running[0][0] - self.drawn) / draw)
        return self.now + max(0.0, min(times)) if times else None

    def admit(self) -> None:
        while self.queue and len(self.running) + len(self.prompts) < self.curve.places:
            request = self.queue.popleft()
            new = max(1, request.arrival.prompt - (request.arrival.shared if request.held else 0))
            self.asked += new
            self.prompts.append((self.asked, request))
        if self.prompts and self.taken >= self.chunk[1] - 1e-6:
            self.taken = self.chunk[1]
            self.chunk = (self.taken, min(self.asked, self.taken + self.curve.chunk))

    def ended(self) -> Iterator[_Request]:
        """Take out what is through; prompts become running sequences at the end of a step."""
        while self.prompts and self.taken >= self.chunk[1] - 1e-6 and self.prompts[0][0] <= self.chunk[1] + 1e-6:
            request = self.prompts.popleft()[1]
            request.first = self.now
            self.serial += 1
            heapq.heappush(self.running, (self.drawn + request.arrival.output - 1, self.serial, request))
        while self.running and self.running[0][0] <= self.drawn + 1e-6:
            yield heapq.heappop(self.running)[2]
        self.admit()


class _Run:
    def __init__(
        self, plan: Plan, problem: Problem, progress: Progress | None, cores: Mapping[str, float] | None
    ) -> None:
        self.services = {s.name: s for s in problem.services if isinstance(s, ModelService)}
        self.problem, self.progress, self.cores = problem, progress, cores or {}
        self.mates: dict[str, list[_Server]] = defaultdict(list)
        self.prices = {n: c.hourly_usd for c in problem.classes for n in c.nodes}
        self.curves: dict[str, Curve] = {}
        self.servers: list[_Server] = []
        self.of_service: dict[str, list[int]] = defaultdict(list)
        self.of_place: dict[object, list[int]] = defaultdict(list)
        self.nodes: Counter[str] = Counter()
        self.books = {name: _Books(s.slo) for name, s in self.services.items()}
        self.homes: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.events: list[tuple[float, int, int]] = []
        self.closing: list[tuple[float, int, Running]] = []
        self.usd = self.paid_s = self.last_s = 0.0
        self.rehomed = 0
        self.columns = {i.column.key: i.column for i in plan.instances}
        for instance in plan.instances:
            self._open(Running(instance.column.key, instance.column.service, instance.places), 0.0, 0.0)

    def go(self, arrivals: Iterator[Arrival], changes: Sequence[Change]) -> None:
        waiting, coming = deque(sorted(changes, key=lambda c: c.at_s)), next(arrivals, None)
        number = 0
        while coming is not None or self.events:
            next_event = self.events[0][0] if self.events else math.inf
            at = min(next_event, coming.at_s if coming is not None else math.inf)
            if waiting and waiting[0].at_s <= at:
                self._change(waiting.popleft())
            elif self.closing and self.closing[0][0] <= at:
                at, _, instance = heapq.heappop(self.closing)
                self._close(instance, at)
            elif coming is not None and coming.at_s <= next_event:
                if coming.service in self.of_service:
                    self._arrive(coming)
                number += 1
                if self.progress is not None and number % _TOLD_EVERY == 0:
                    self.progress(coming.at_s, number)
                coming = _following(arrivals, coming)
            else:
                self._serve(*heapq.heappop(self.events))
        self._pay(self.last_s)

    def _arrive(self, a: Arrival) -> None:
        key = (a.service, a.session)
        home = self.homes.get(key)
        held = home is not None and not self.servers[home].closed and self.servers[home].load < 1.0
        if home is not None and held:
            index = home
        else:
            self.rehomed += home is not None and self.servers[home].closed
            asked = _some(self.of_service[a.service], a.session)
            able = [i for i in asked if self.servers[i].open_s <= a.at_s] or self._open_now(a)
            index = min(able, key=lambda i: (self.servers[i].load, i))
        self.homes[key] = index
        self.homes.move_to_end(key)
        if len(self.homes) > _HOMES:
            self.homes.popitem(last=False)
        server = self.servers[index]
        server.advance(max(server.now, a.at_s))
        server.queue.append(_Request(a, held and a.shared > 0))
        server.admit()
        self._schedule(server)

    def _open_now(self, a: Arrival) -> Sequence[int]:
        mine = self.of_service[a.service]
        return [i for i in mine if self.servers[i].open_s <= a.at_s] or mine

    def _serve(self, at: float, index: int, version: int) -> None:
        server = self.servers[index]
        if version != server.version:
            return
        server.advance(at)
        for request in server.ended():
            self.books[request.arrival.service].add(request, at, server.curve.fixed_s)
            self.last_s = max(self.last_s, at + server.curve.fixed_s)
        self._schedule(server)

    def _schedule(self, server: _Server) -> None:
        if server.takes and server.busy is not bool(server.running or server.prompts):
            server.busy = not server.busy
            self._share(server)
        self._await(server)

    def _share(self, changed: _Server) -> None:
        """Divide the cores of the nodes of `changed` anew among who is busy there."""
        for mate in {id(m): m for node in changed.takes for m in self.mates[node]}.values():
            share = min(min(1.0, self.cores[n] / max(1e-9, self._wanted(n))) for n in mate.takes)
            if share != mate.share:
                mate.advance(max(mate.now, changed.now))
                mate.share = share
                if mate is not changed:
                    self._await(mate)

    def _wanted(self, node: str) -> float:
        return sum(m.takes[node] for m in self.mates[node] if m.busy)

    def _await(self, server: _Server) -> None:
        server.version += 1
        at = server.next_s()
        if at is not None:
            heapq.heappush(self.events, (at, server.number, server.version))

    def _open(self, instance: Running, at: float, load_s: float) -> None:
        """An instance that serves from `at + load_s` on; its nodes cost from `at` on."""
        service = self.services.get(instance.service)
        self.nodes.update(p.node for p in instance.places)
        if service is None:
            return
        if instance.key not in self.curves:
            self.curves[instance.key] = curve_of(self.problem, self.columns[instance.key], service)
        server = _Server(self.curves[instance.key], len(self.servers), at + load_s, now=at + load_s)
        self.of_service[instance.service].append(server.number)
        self.of_place[where(instance)].append(server.number)
        self.servers.append(server)
        takes: dict[str, float] = defaultdict(float)
        for place in instance.places:
            if place.node in self.cores:
                takes[place.node] += place.cores
        server.takes = takes
        for node in takes:
            self.mates[node].append(server)

    def _change(self, change: Change) -> None:
        self._pay(change.at_s)
        self.columns |= {i.column.key: i.column for i in change.replan.plan.instances}
        for order, step in enumerate(change.replan.steps):
            instance = Running(step.key, step.service, step.places)
            if step.action == "start":
                self._open(instance, change.at_s, change.load_s)
            else:
                at = change.at_s if step.breaks else change.at_s + change.load_s
                heapq.heappush(self.closing, (at, order, instance))

    def _close(self, instance: Running, at: float) -> None:
        """No new requests; what runs ends, what waits goes elsewhere."""
        self._pay(at)
        self.nodes.subtract(p.node for p in instance.places)
        numbers = self.of_place.get(where(instance))
        if not numbers:
            return
        server = self.servers[numbers.pop()]
        server.closed = True
        self.of_service[instance.service].remove(server.number)
        waiting, server.queue = list(server.queue), deque()
        for request in waiting:
            if self.of_service[instance.service]:
                index = min(self.of_service[instance.service], key=lambda i: (self.servers[i].load, i))
                other = self.servers[index]
                other.advance(max(other.now, at))
                other.queue.append(_Request(request.arrival, False))
                other.admit()
                self._schedule(other)
            else:
                server.queue.append(request)

    def _pay(self, at: float) -> None:
        hourly = sum(self.prices.get(node, 0.0) for node, count in self.nodes.items() if count > 0)
        self.usd += hourly * max(0.0, at - self.paid_s) / 3600
        self.paid_s = max(at, self.paid_s)


def _following(arrivals: Iterator[Arrival], last: Arrival) -> Arrival | None:
    coming = next(arrivals, None)
    if coming is not None and coming.at_s < last.at_s:
        raise InvalidArgumentError(
            f"arrivals go back in time, from {last.at_s:g} s to {coming.at_s:g} s; sort them", field="arrivals"
        )
    return coming


def _some(candidates: Sequence[int], session: int) -> Sequence[int]:
    """All of a few, else eight picked by the session's number: nearly as good, at the same cost for any number."""
    if len(candidates) <= _ASKED:
        return candidates
    return [candidates[(session * 2654435761 + k * 40503 * (session + 1)) % len(candidates)] for k in range(8)]


def simulate(
    plan: Plan,
    problem: Problem,
    arrivals: Iterable[Arrival],
    changes: Sequence[Change] = (),
    progress: Progress | None = None,
    cores: Mapping[str, float] | None = None,
) -> Simulated:
    """Run `plan` under `arrivals` until all are answered.

    Args:
        arrivals: in order of time; may be a generator of any length. Those of services without an instance are passed
            over. changes: replans on the way, each from what stands by then. cores: what nodes really have, where that
            is less than their processes were promised: who is busy at the same time shares them.

    Raises:
        InvalidArgumentError: arrivals are out of order.
    """
    run = _Run(plan, problem, progress, cores)
    run.go(iter(arrivals), changes)
    steps = [s for c in changes for s in c.replan.steps]
    return Simulated(
        services={name: books.outcome(run.last_s) for name, books in run.books.items() if books.requests},
        seconds=run.last_s,
        usd=run.usd,
        moves=sum(s.action == "start" for s in steps),
        move_usd=sum(c.replan.move_usd for c in changes),
        broken=sum(s.breaks for s in steps),
        rehomed=run.rehomed,
    )
