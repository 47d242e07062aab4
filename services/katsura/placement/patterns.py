"""Every instance shape worth counting: which members on which class of nodes, and what one such instance serves.

The cost model is asked once per (service, kinds of devices, sizes); what no other shape dominates becomes one column
per class of nodes, or per pair of classes for a split. `program` counts columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, islice, product
from typing import Final

from katsura.placement.catalogue import Device, cores_of
from katsura.placement.cost import ErrorClass, Layout, sequence_bytes, weights_bytes
from katsura.placement.operate import UTILISATION, Point, Refusal, replica_point, replica_ttft_s
from katsura.placement.pairs import Half, pair_point
from katsura.placement.pipelines import Parts, StageKind, pipelines
from katsura.placement.problem import PAIR, PIPELINE, SPLIT, UNIFIED, HelperService, ModelService, NodeClass, Problem
from katsura.placement.split import COPIES, Pool, Side, member_memory_bytes, pool_point

_TENSOR: Final = (1, 2, 4, 8)
_SHARDS: Final = (1, 2, 4, 8)
_MEMBERS: Final = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_MEMBER_SIZES: Final = 5
"""Sizes of a pool that are tried, from the smallest that holds the weights; one member only where it is asked for: it
would have the only copy."""
_KEPT_PER_PAIR: Final = 6
_CPU_BATCH_MAX: Final = 64
_RATIOS: Final = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1))
"""Prefill and decode replicas of one pair."""
_MEMO_MOST: Final = 128
"""Services that a memo holds: those of one cluster, a few times over."""


@dataclass(frozen=True, slots=True)
class Member:
    """`count` processes of one role on nodes of one class; the rest is what each of them takes."""

    role: str
    node_class: str
    count: int
    accelerators: int
    cores: float
    ram_bytes: float


@dataclass(frozen=True, slots=True)
class Column:
    """One deployable instance of a service; `requests_s` is its planned capacity."""

    service: str
    topology: str
    members: tuple[Member, ...]
    requests_s: float
    point: Point | None
    domain: str
    spot: bool
    key: str = field(init=False, compare=False)
    """A name that stays the same from plan to plan."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key_on(lambda name: name))

    def key_on(self, renamed: Callable[[str], str]) -> str:
        """The key that it has where its classes are called `renamed`."""
        parts = (f"{m.role}:{m.count}x{m.accelerators or m.cores:g}@{renamed(m.node_class)}" for m in self.members)
        return f"{self.service}/{self.topology}[{','.join(parts)}]"


@dataclass(frozen=True, slots=True)
class Refused:
    """A kind of device on which a service cannot run, and why."""

    service: str
    topology: str
    device: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Unit:
    """A slice of a node that one process takes: `count` accelerators or cores, seen as `device`."""

    device: Device
    count: int
    is_cpu: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """`count` processes of one role, each on `unit`; on cores each takes `memory_bytes`."""

    role: str
    unit: Unit
    count: int
    memory_bytes: float


@dataclass(frozen=True, slots=True)
class _Shape:
    topology: str
    parts: tuple[_Part, ...]
    point: Point

    @property
    def units(self) -> int:
        """Accelerators or cores."""
        return sum(p.count * p.unit.count for p in self.parts)

    def load_per_request(self, price: Mapping[str, float]) -> float:
        return sum(p.count * p.unit.count * price[p.unit.device.name] for p in self.parts) / self.point.requests_s


class Memo:
    """What the cost model said of services, for problems to come: only services that differ are asked about.

    It holds for one cluster: of other devices, prices or coefficients it knows nothing.
    Demands and numbers of nodes do not matter.
    """

    def __init__(self) -> None:
        self._ground: object = None
        self.shapes: dict[object, tuple[tuple[_Shape, ...], tuple[Refused, ...]]] = {}
        self.steps: dict[object, dict[object, dict[int, tuple[float, int]]]] = defaultdict(lambda: defaultdict(dict))
        """By model and load, then by pool, then by batch: objectives do not change them."""

    def stand_on(self, problem: Problem) -> None:
        """Forget what does not hold for `problem`."""
        ground = problem.calibration, problem.confidence, unit_prices(problem), _units(problem)
        if ground != self._ground or len(self.shapes) > _MEMO_MOST:
            self._ground = ground
            self.shapes.clear()
            self.steps.clear()


@dataclass(frozen=True, slots=True)
class Patterns:
    """What the cost model found for each service of a problem; `columns` lays it over classes of nodes."""

    problem: Problem
    shapes: Mapping[str, tuple[_Shape, ...]]
    refused: tuple[Refused, ...]
    memo: Memo = field(default_factory=Memo, repr=False, compare=False)
    _laid: list[tuple[Sequence[NodeClass], tuple[Column, ...]]] = field(default_factory=list, repr=False, compare=False)

    def columns(self, classes: Sequence[NodeClass]) -> tuple[Column, ...]:
        """Every shape on every class, or pair of classes of one domain, that has its devices; in a fixed order."""
        known = next((columns for laid, columns in self._laid if laid == classes), None)
        if known is None:
            known = tuple(self._lay(classes))
            self._laid.append((classes, known))
        return known

    def beside(self, more: Sequence[Column]) -> Patterns:
        """These, and columns that lie as none of them on the problem's classes."""
        classes = self.problem.classes
        return replace(self, _laid=[(classes, (*self.columns(classes), *more))]) if more else self

    def _lay(self, classes: Sequence[NodeClass]) -> list[Column]:
        made: list[Column] = []
        laid: dict[int, list[Column]] = {}
        sites = _Sites(classes)
        for service in self.problem.services:
            if isinstance(service, HelperService):
                made += _helper_columns(service, classes)
                continue
            shapes = self.shapes[service.name]
            if id(shapes) in laid:
                made += (replace(column, service=service.name) for column in laid[id(shapes)])
                continue
            laid[id(shapes)] = [c for shape in shapes for c in _spread(service, shape, self.problem, sites)]
            made += laid[id(shapes)]
        return made


def enumerate_patterns(problem: Problem, memo: Memo | None = None) -> Patterns:
    """Ask the cost model about every service on every kind of device; `memo` knows what was asked before."""
    refused: list[Refused] = []
    shapes: dict[str, tuple[_Shape, ...]] = {}
    cut: dict[object, tuple[tuple[_Shape, ...], tuple[Refused, ...]]] = {}
    memo = memo or Memo()
    memo.stand_on(problem)
    for service in problem.services:
        if isinstance(service, HelperService):
            continue
        # Services that differ by name and demand only have the same shapes.
        alike = (
            service.card,
            service.precision,
            service.load,
            service.slo,
            service.topologies,
            service.devices,
            service.last_resort,
            service.ran,
            service.timed,
            service.paces,
            tuple(sorted(service.replicas.items())),
            service.units,
            service.kv_bytes,
        )
        if alike not in memo.shapes:
            found: list[Refused] = []
            memo.shapes[alike] = tuple(_shapes(service, problem, found, memo)), tuple(found)
        if alike not in cut:
            cut[alike] = _with_pipelines(service, problem, *memo.shapes[alike])
        shapes[service.name] = cut[alike][0]
        refused += [replace(r, service=service.name) for r in cut[alike][1]]
    return Patterns(problem, shapes, tuple(refused), memo)


def _helper_columns(service: HelperService, classes: Iterable[NodeClass]) -> Iterator[Column]:
    for c in classes:
        if c.cores >= service.cores and c.ram_bytes >= service.ram_bytes:
            member = Member(service.role, c.name, 1, 0, service.cores, service.ram_bytes)
            yield Column(service.name, "Helper", (member,), service.capacity, None, c.domain, c.spot)


def units_of(c: NodeClass) -> list[Unit]:
    """The slices that a process may take of a node of class `c`."""
    if c.device is not None:
        return [Unit(c.device, n, False) for n in _TENSOR if n <= c.accelerators]
    return [Unit(cores_of(c.core, n, c.ram_bytes), n, True) for n in _TENSOR if n <= c.cores]


def _shapes(service: ModelService, problem: Problem, refused: list[Refused], memo: Memo) -> list[_Shape]:
    """All but pipelines: what nobody but the service and the kinds of nodes decides."""
    problem = problem.of(service)
    units, price = units_by_kind(service, problem), unit_prices(problem)
    shapes: list[_Shape] = []
    if UNIFIED in service.topologies:
        for name in units:
            shapes += _unified(service, problem, name, units[name], refused)
    for first, second in product(units, units) if SPLIT in service.topologies else ():
        made = _split(service, problem, units[first], units[second], memo)
        if not made:
            why = "no split of it fits and keeps its times"
            refused.append(Refused(service.name, SPLIT, f"{first} + {second}", "split", why))
        shapes += _best(made, price)
    for first, second in product(units, units) if PAIR in service.topologies else ():
        paired, last = _paired(service, problem, units[first], units[second])
        if not paired and last is not None:
            refused.append(Refused(service.name, PAIR, f"{first} + {second}", last.reason, last.detail))
        shapes += _best(paired, price)
    return shapes


def _with_pipelines(
    service: ModelService, problem: Problem, shapes: tuple[_Shape, ...], refused: tuple[Refused, ...]
) -> tuple[tuple[_Shape, ...], tuple[Refused, ...]]:
    """Pipelines besides, where they are asked for: how many nodes each domain has decides over them."""
    if PIPELINE not in (service.topologies if shapes else (*service.topologies, *service.last_resort)):
        return shapes, refused
    problem = problem.of(service)
    units = units_by_kind(service, problem)
    cut, why_not = _pipelined(service, problem, units, unit_prices(problem))
    if why_not is not None:
        refused += (Refused(service.name, PIPELINE, " + ".join(units), why_not.reason, why_not.detail),)
    return (*shapes, *cut), refused


def _units(problem: Problem) -> dict[str, list[Unit]]:
    """Slices of the largest node of each kind that has room for one, by the name of the device."""
    largest: dict[str, NodeClass] = {}
    for c in problem.classes:
        name = _kind_name(c)
        largest[name] = max(largest.get(name, c), c, key=lambda k: (k.accelerators, k.cores, k.ram_bytes))
    return {name: units for name, c in largest.items() if (units := units_of(c))}


def units_by_kind(service: ModelService, problem: Problem) -> dict[str, list[Unit]]:
    """Slices that `service` may take, of the largest node of each kind, by the name of the device."""
    return {name: units for name, units in _units(problem).items() if not service.devices or name in service.devices}


def unit_prices(problem: Problem) -> dict[str, float]:
    """Dollars per hour of one accelerator or core, by the name of the device."""
    return {_kind_name(c): _unit_price(c) for c in problem.classes}


def layout_of(unit: Unit) -> Layout:
    """How a replica lies over a slice of a node: cores are one device, accelerators are cut by tensor."""
    return Layout() if unit.is_cpu else Layout(unit.count, per_node=unit.count)


def batch_most(unit: Unit) -> int:
    """The largest batch that is planned for on this kind of slice."""
    return _CPU_BATCH_MAX if unit.is_cpu else 1024


def _kind_name(c: NodeClass) -> str:
    return (c.device or c.core).name


def _unit_price(c: NodeClass) -> float:
    return max(c.hourly_usd, 1e-6) / (c.accelerators or c.cores)


def margin_of(problem: Problem, device: Device, units: int = 0) -> float:
    """Factor over the predicted time of a process on `units` of a device (0: any) that is held to an objective."""
    return 1.0 if problem.confidence <= 0.5 else problem.known(device, units).quantile_90


def _unified(
    service: ModelService, problem: Problem, kind: str, units: Sequence[Unit], refused: list[Refused]
) -> Iterator[_Shape]:
    last: Refusal | None = None
    found = False
    if any(r.device == kind for r in service.ran):
        yield from _as_ran(service, problem, kind, units, refused)
        return
    if units and any(t.device == kind for t in service.timed):
        shapes = list(_as_timed(service, problem, kind, units, refused))
        if shapes or not problem.calibration.of(units[0].device).extrapolate:
            yield from shapes
            return
    for unit in units:
        point = replica_point(
            service.card,
            unit.device,
            service.precision,
            layout_of(unit),
            service.load,
            service.slo,
            problem.known(unit.device, unit.count),
            margin_of(problem, unit.device, unit.count),
            batch_most(unit),
            service.kv_bytes,
        )
        if isinstance(point, Refusal):
            last = point
            continue
        found = True
        yield _Shape(UNIFIED, (_Part("unified", unit, 1, point.memory_bytes),), point)
    if last and not found:
        refused.append(Refused(service.name, UNIFIED, kind, last.reason, last.detail))


def _as_ran(
    service: ModelService, problem: Problem, kind: str, units: Sequence[Unit], refused: list[Refused]
) -> Iterator[_Shape]:
    """What was run on `kind` and kept the objectives; its time to the first token is a prediction still."""
    card, precision, load, slo = service.card, service.precision, service.load, service.slo
    best: dict[int, _Shape] = {}
    mine = [r for r in service.ran if r.device == kind]
    for unit in units:
        for ran in (r for r in mine if r.units == unit.count and (slo.itl_s is None or r.itl_s <= slo.itl_s)):
            layout, known = layout_of(unit), problem.known(unit.device, unit.count)
            ttft = replica_ttft_s(card, unit.device, precision, layout, load, known, ran.batch, ran.itl_s)
            if slo.ttft_s is not None and ttft * margin_of(problem, unit.device, unit.count) > slo.ttft_s:
                continue
            held = weights_bytes(card, precision, layout) + ran.batch * sequence_bytes(card, precision, layout, load)
            requests_s = UTILISATION * ran.batch / (load.output * ran.itl_s)
            point = Point(ran.batch, ran.itl_s, ttft, requests_s, "trial", ErrorClass.MEASURED, held)
            if unit.count not in best or requests_s > best[unit.count].point.requests_s:
                best[unit.count] = _Shape(UNIFIED, (_Part("unified", unit, 1, held),), point)
    if not best:
        fastest = min(r.itl_s for r in mine) * 1e3
        refused.append(
            Refused(service.name, UNIFIED, kind, "trial", f"of {len(mine)} runs the fastest: {fastest:.0f} ms")
        )
    yield from best.values()


def _as_timed(
    service: ModelService, problem: Problem, kind: str, units: Sequence[Unit], refused: list[Refused]
) -> Iterator[_Shape]:
    """What a table of measured points says of `kind`."""
    from katsura.placement.tables import tabled_points  # needs numpy; who reads plans only may lack it

    # Not `problem.known`: a pace is of one size, and the rows of all sizes say themselves how fast steps are.
    known, last, found = problem.calibration.of(units[0].device), None, False
    for unit, point in tabled_points(service, kind, units, known, problem.confidence):
        if isinstance(point, Refusal):
            if last is None or point.reason == "table":
                last = point
            continue
        found = True
        yield _Shape(UNIFIED, (_Part("unified", unit, 1, point.memory_bytes),), point)
    if last is not None and not found:
        refused.append(Refused(service.name, UNIFIED, kind, last.reason, last.detail))


def _split(
    service: ModelService,
    problem: Problem,
    attention: Sequence[Unit],
    experts: Sequence[Unit],
    memo: Memo,
) -> list[_Shape]:
    fixed = service.replicas
    shards = (fixed["attention"],) if "attention" in fixed else _SHARDS
    e = experts[0]
    enough = (n for n in _MEMBERS if n <= max(COPIES, service.units) and _holds(service, e, n))
    members = (fixed["experts"],) if "experts" in fixed else tuple(islice(enough, _MEMBER_SIZES))
    shapes: list[_Shape] = []
    steps = memo.steps[service.card, service.precision, service.load, service.paces, service.units]
    for a, s, m in product(attention, shards, members):
        point = pool_point(
            service.card,
            service.precision,
            pool_of(problem, a, e, s, m, service.units),
            service.load,
            service.slo,
            max(margin_of(problem, u.device, u.count) for u in (a, e)),
            batch_max=s * (_CPU_BATCH_MAX if a.is_cpu else 1024),
            kv_bytes=service.kv_bytes,
            known=steps[a.device.name, a.count, e.device.name, e.count, s, m],
        )
        if isinstance(point, Point):
            attend = _Part("attention", a, s, point.memory_bytes)
            shapes.append(_Shape(SPLIT, (attend, _Part("experts", e, m, point.expert_memory_bytes)), point))
    return shapes


def _paired(
    service: ModelService, problem: Problem, prefill: Sequence[Unit], decode: Sequence[Unit]
) -> tuple[list[_Shape], Refusal | None]:
    """Prefill and decode replicas in every ratio; replicas that are fixed for other roles leave no room for pairs."""
    shapes: list[_Shape] = []
    last: Refusal | None = None
    for p, d in product(prefill, decode) if not service.replicas else ():
        if p.is_cpu != d.is_cpu:
            continue
        for ratio in _RATIOS:
            first, second = (half_of(problem, unit, count) for unit, count in zip((p, d), ratio, strict=True))
            point = pair_point(
                service.card,
                service.precision,
                first,
                second,
                link_of(p, d),
                service.load,
                service.slo,
                max(margin_of(problem, u.device, u.count) for u in (p, d)),
                _CPU_BATCH_MAX if d.is_cpu else 1024,
            )
            if isinstance(point, Point):
                prompts = _Part("prefill", p, ratio[0], point.memory_bytes)
                shapes.append(_Shape(PAIR, (prompts, _Part("decode", d, ratio[1], point.expert_memory_bytes)), point))
            else:
                last = point
                break
    return shapes, last


def _pipelined(
    service: ModelService, problem: Problem, units: Mapping[str, Sequence[Unit]], price: Mapping[str, float]
) -> tuple[list[_Shape], Refusal | None]:
    """Pipelines over the largest slices of each kind of node, of two kinds, and of all of a domain.

    Fixed replicas of other roles leave no room for them.
    """
    whole = [u for kind in units.values() for u in kind[-1:]]
    asked: dict[object, list[_Shape]] = {}
    last: Refusal | None = None
    for domain in sorted({c.domain for c in problem.classes}) if not service.replicas else ():
        have = [sum(_slices(c, u) for c in problem.classes if c.domain == domain) for u in whole]
        here = [(u, n) for u, n in zip(whole, have, strict=True) if n]
        for many in sorted({1, 2, len(here)} & set(range(1, len(here) + 1))):
            for chosen in combinations(here, many):
                key = tuple((u.device.name, u.count, n) for u, n in chosen)
                if key not in asked:
                    asked[key], why = _cut(service, problem, chosen, price)
                    last = why or last
    # Of those that take the same slices, and so have the same name in plans, the fastest.
    made: dict[object, _Shape] = {}
    for shape in (s for kept in asked.values() for s in kept):
        same = tuple((p.unit.device.name, p.unit.count, p.count) for p in shape.parts)
        if same not in made or shape.point.requests_s > made[same].point.requests_s:
            made[same] = shape
    return list(made.values()), None if made else last


def _cut(
    service: ModelService, problem: Problem, chosen: Sequence[tuple[Unit, int]], price: Mapping[str, float]
) -> tuple[list[_Shape], Refusal | None]:
    margin = max(margin_of(problem, u.device, u.count) for u, _ in chosen)
    made, why = pipelines(parts_of(problem, service, chosen, price), service.slo, margin)
    shapes = []
    for found in made:
        rows = zip(chosen, found.layers, found.memory_bytes, strict=True)
        parts = tuple(_Part("stage", u, len(layers), memory) for (u, _), layers, memory in rows if layers)
        shapes.append(_Shape(PIPELINE, parts, found.point))
    return _best(shapes, price), why


def _slices(c: NodeClass, unit: Unit) -> int:
    """Slices of one kind on the nodes of a class."""
    if unit.is_cpu != (c.device is None) or unit.device.name != _kind_name(c):
        return 0
    return len(c.nodes) * int((c.accelerators or c.cores) // unit.count)


def parts_of(
    problem: Problem, service: ModelService, units: Sequence[tuple[Unit, int]], price: Mapping[str, float]
) -> Parts:
    """What pipelines of `service` over so many slices are made of; stages are taken to be beyond each other's node."""
    kinds = []
    for u, many in units:
        usd = price.get(u.device.name, 0.0) * u.count
        kinds.append(StageKind(u.device, layout_of(u), problem.known(u.device, u.count), many, usd))
    hop = problem.calibration.hop_s["cpu_remote" if any(u.is_cpu for u, _ in units) else "gpu_remote"]
    link = min(u.device.inter_bytes_s for u, _ in units)
    return Parts(service.card, service.precision, service.load, tuple(kinds), link, hop)


def half_of(problem: Problem, unit: Unit, replicas: int) -> Half:
    """One side of a pair."""
    return Half(unit.device, layout_of(unit), replicas, problem.known(unit.device, unit.count))


def link_of(first: Unit, second: Unit) -> float:
    """Bytes per second between processes on two units: equal accelerators share a fast domain, others the network."""
    near = first.device.name == second.device.name
    return min(x.device.intra_bytes_s if near and not x.is_cpu else x.device.inter_bytes_s for x in (first, second))


def _holds(service: ModelService, e: Unit, members: int) -> bool:
    devices = 1 if e.is_cpu else e.count
    held = member_memory_bytes(service.card, service.precision, members, devices, service.units)
    return held <= e.device.usable_bytes


def pool_of(problem: Problem, a: Unit, e: Unit, shards: int, members: int, units: int) -> Pool:
    """The pool of one pair of slices; its members share `units` of each FFN."""
    known, hop = problem.known, problem.calibration.hop_s
    near = a.device.name == e.device.name
    kind = "cpu" if a.is_cpu or e.is_cpu else "gpu"
    return Pool(
        Side(a.device, shards, 1 if a.is_cpu else a.count, known(a.device, a.count)),
        Side(e.device, members, 1 if e.is_cpu else e.count, known(e.device, e.count)),
        link_of(a, e),
        hop[kind if near else f"{kind}_remote"],
        units,
    )


def _best(shapes: Sequence[_Shape], price: Mapping[str, float]) -> list[_Shape]:
    """The cheapest shapes per request of one pair, and the smallest; ties go to fewer devices."""
    ranked = sorted(shapes, key=lambda s: (s.load_per_request(price), s.units))
    smallest = sorted(shapes, key=lambda s: (s.units, s.load_per_request(price)))
    kept = ranked[:_KEPT_PER_PAIR]
    return kept + [s for s in smallest[:1] if all(s is not k for k in kept)]


_Kind = tuple[bool, str]
"""Of slices: whether they are cores, and the device's name."""


class _Sites:
    """Classes of nodes by what their slices are: of a kind anywhere, and of a kind in one domain."""

    def __init__(self, classes: Sequence[NodeClass]) -> None:
        self.all: dict[_Kind, list[NodeClass]] = defaultdict(list)
        self.near: dict[tuple[str, _Kind], list[NodeClass]] = defaultdict(list)
        for c in classes:
            kind = c.device is None, _kind_name(c)
            self.all[kind].append(c)
            self.near[c.domain, kind].append(c)


def _spread(service: ModelService, shape: _Shape, problem: Problem, sites: _Sites) -> Iterator[Column]:
    point = shape.point
    lead_part, *others = shape.parts
    lead_kind, *kinds = ((p.unit.is_cpu, p.unit.device.name) for p in shape.parts)
    for lead in sites.all[lead_kind]:
        able = [_able(problem, lead_part, (lead,))]
        able += (_able(problem, p, sites.near[lead.domain, k]) for p, k in zip(others, kinds, strict=True))
        for chosen in product(*able):
            members, spot = tuple(m for _, m in chosen), any(c.spot for c, _ in chosen)
            yield Column(service.name, shape.topology, members, point.requests_s, point, lead.domain, spot)


def _able(problem: Problem, part: _Part, classes: Sequence[NodeClass]) -> list[tuple[NodeClass, Member]]:
    """The classes whose nodes have room for a process of `part`, with what it takes there."""
    return [(c, m) for c in classes if _fits(m := _member(problem, part, c), c)]


def _fits(member: Member, c: NodeClass) -> bool:
    """Whether one process of `member` fits one node of `c`."""
    return member.accelerators <= c.accelerators and member.cores <= c.cores and member.ram_bytes <= c.ram_bytes


def _member(problem: Problem, part: _Part, c: NodeClass) -> Member:
    helpers, unit = problem.calibration.helpers, part.unit
    base = helpers["process_ram_bytes"]
    if unit.is_cpu:
        return Member(part.role, c.name, part.count, 0, float(unit.count), base + part.memory_bytes)
    share = c.cores * unit.count / c.accelerators if c.accelerators else 0.0
    host = min(helpers["host_cores_per_accelerator"] * unit.count, share)
    return Member(part.role, c.name, part.count, unit.count, host, base * unit.count)
