"""What runs, read as a plan of today's problem: by the classes that its nodes are of now, at the sizes it needs now.

`replan` asks whether that is allowed still and what it serves, and takes steps from it. Between two decisions nodes go
and come, pods of others take cores (which makes a class of its own of a node), limits and fixed counts change.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from katsura.placement.document import Current, Running
from katsura.placement.pack import Packed
from katsura.placement.patterns import Column, Patterns
from katsura.placement.plan import Instance, Place, Plan
from katsura.placement.problem import NodeClass, Problem
from katsura.placement.program import exact_instances
from katsura.placement.search import Solved
from katsura.placement.tally import tally, units_used

_ROUNDED = 1e-6
"""Part of an amount that reading it back from a document may miss."""


@dataclass(slots=True)
class Floor:
    """Room on nodes and capacity of services while steps are taken; `rates` are requests per second by column key."""

    problem: Problem
    rates: Mapping[str, float]
    room: dict[str, list[float]] = field(default_factory=dict)
    capacity: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        for c in self.problem.classes:
            self.room.update({n: [c.accelerators, c.cores, c.ram_bytes] for n in c.nodes})

    def fits(self, places: Sequence[Place]) -> bool:
        """Whether all of `places` have room beside what stands; nodes that are gone have none."""
        need: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for p in places:
            for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
                need[p.node][k] += amount
        return all(
            node in self.room and amount <= self.room[node][k] * (1 + 1e-9) + 1e-6
            for node, row in need.items()
            for k, amount in enumerate(row)
        )

    def change(self, instance: Running, sign: int) -> None:
        """`instance` starts (`sign` 1) or stops (-1)."""
        for p in instance.places:
            row = self.room.get(p.node)
            if row is not None:
                for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
                    row[k] -= sign * amount
        self.capacity[instance.service] += sign * self.rates.get(instance.key, 0.0)

    def spare(self, instance: Running) -> float:
        """Capacity beyond the demand that is left once `instance` is gone."""
        demand = next((s.requests_s for s in self.problem.services if s.name == instance.service), 0.0)
        return self.capacity[instance.service] - self.rates.get(instance.key, 0.0) - demand


def named_now(
    current: Current, classes: Iterable[NodeClass], columns: Sequence[Column]
) -> tuple[Current, tuple[Column, ...]]:
    """`current` with classes called as they are now, and columns of what stands on several of what was one.

    Such an instance is one that `columns` have, each process at the size that it has there on its class. What none of
    them is like keeps its names.
    """
    by_name = {c.name: c for c in classes}
    now = {node: c.name for c in by_name.values() for node in c.nodes}
    known = {c.key for c in columns}
    alike: dict[object, list[Column]] = defaultdict(list)
    found, apart = [], dict[str, Column]()
    for instance in current.instances:
        renamed = _renamed(instance, now)
        strange = renamed.key not in known or any(now.get(p.node) != p.node_class for p in renamed.places)
        if strange and all(p.node in now for p in instance.places):
            if not alike:
                for c in columns:
                    kinds = ((m.role, m.accelerators or m.cores, by_name[m.node_class], m.count) for m in c.members)
                    alike[c.service, c.topology, _shape(kinds)].append(c)
            places = tuple(replace(p, node_class=now[p.node]) for p in instance.places)
            column = _spread_out(instance, places, by_name, alike)
            if column is not None:
                renamed = Running(column.key, instance.service, places)
                if column.key not in known:
                    apart[column.key] = column
        found.append(renamed)
    return Current(tuple(found)), tuple(apart.values())


def _shape(processes: Iterable[tuple[str, float, NodeClass, int]]) -> frozenset[tuple[object, int]]:
    """What an instance is wherever it stands: processes by role, accelerators (or cores) and kind of device."""
    counted: Counter[tuple[str, float, str]] = Counter()
    for role, size, c, count in processes:
        counted[role, round(size, 6), (c.device or c.core).name] += count
    return frozenset(counted.items())


def _spread_out(
    instance: Running,
    places: Sequence[Place],
    classes: Mapping[str, NodeClass],
    alike: Mapping[object, Sequence[Column]],
) -> Column | None:
    """The column of an instance at `places`, which are of one domain; None where a class has no such process."""
    topology = instance.key.removeprefix(f"{instance.service}/").partition("[")[0]
    kinds = ((p.role, p.accelerators or p.cores, classes[p.node_class], 1) for p in places)
    same = alike.get((instance.service, topology, _shape(kinds)), ())
    sizes = {(m.role, m.node_class): m for c in same for m in c.members}
    counted = Counter((p.role, p.node_class) for p in places)
    domains = {classes[name].domain for _, name in counted}
    if not counted.keys() <= sizes.keys() or len(domains) != 1:
        return None
    order = {m.role: i for i, m in enumerate(same[0].members)}
    mine = sorted(counted.items(), key=lambda item: (order[item[0][0]], item[0][1]))
    members = tuple(replace(sizes[key], count=n) for key, n in mine)
    spot = any(classes[name].spot for _, name in counted)
    return Column(instance.service, topology, members, same[0].requests_s, same[0].point, domains.pop(), spot)


def _renamed(instance: Running, now: Mapping[str, str]) -> Running:
    names: dict[str, set[str]] = defaultdict(set)
    for p in instance.places:
        names[p.node_class].add(now.get(p.node, p.node_class))
    if any(len(found) > 1 for found in names.values()) or all(found == {name} for name, found in names.items()):
        return instance
    to = {name: found.pop() for name, found in names.items()}
    head, _, members = instance.key.partition("[")
    parts = (member.partition("@") for member in members.removesuffix("]").split(","))
    key = f"{head}[{','.join(f'{what}@{to.get(name, name)}' for what, _, name in parts)}]"
    return Running(key, instance.service, tuple(replace(p, node_class=to[p.node_class]) for p in instance.places))


def standing_plan(problem: Problem, columns: Sequence[Column], current: Current) -> Plan | str:
    """`current` as a plan of `problem`, whatever it serves; or why it cannot stay, in words."""
    by_key = {c.key: c for c in columns}
    asked = {s.name for s in problem.services}
    nodes = {n for c in problem.classes for n in c.nodes}
    for instance in current.instances:
        column = by_key.get(instance.key)
        if instance.service not in asked:
            return f"{instance.service} runs and nobody asks for it any more"
        if not nodes.issuperset(p.node for p in instance.places):
            return "nodes are gone on which something runs"
        if column is None or not _is_whole(column, instance):
            return f"{instance.service} runs in a way that no plan would take any more"
    sized = _sized(problem, by_key, current)
    if sized is None:
        return "nodes have less room than what runs takes"
    counted = tuple((by_key[key], n) for key, n in current.counts.items())
    solved = Solved(counted, 0.0, "kept", problem.classes, tuple(columns), {})
    made = tally(problem, Patterns(problem, {}, ()), solved, Packed(sized, frozenset()))
    return _beyond(problem, made) or made


def _is_whole(column: Column, instance: Running) -> bool:
    wanted: Counter[tuple[str, str]] = Counter()
    for m in column.members:
        wanted[m.role, m.node_class] += m.count
    return wanted == Counter((p.role, p.node_class) for p in instance.places)


def _sized(problem: Problem, by_key: Mapping[str, Column], current: Current) -> tuple[Instance, ...] | None:
    """Its instances at the sizes that they have, where these do still; else at those that they need now."""
    as_it_is = [Instance(by_key[i.key], i.places) for i in current.instances]
    as_needed = [replace(i, places=_needed(i)) for i in as_it_is]
    enough = [h if _holds(h, n) else n for h, n in zip(as_it_is, as_needed, strict=True)]
    for sized in (enough, as_needed):
        floor = Floor(problem, {})
        if all(_put(floor, i) for i in sized):
            return tuple(sized)
    return None


def _needed(instance: Instance) -> tuple[Place, ...]:
    sizes = {(m.role, m.node_class): m for m in instance.column.members}
    found = ((p, sizes[p.role, p.node_class]) for p in instance.places)
    return tuple(replace(p, accelerators=m.accelerators, cores=m.cores, ram_bytes=m.ram_bytes) for p, m in found)


def _holds(held: Instance, needed: Instance) -> bool:
    return all(
        h.accelerators == n.accelerators
        and h.cores >= n.cores * (1 - _ROUNDED)
        and h.ram_bytes >= n.ram_bytes * (1 - _ROUNDED)
        for h, n in zip(held.places, needed.places, strict=True)
    )


def _put(floor: Floor, instance: Instance) -> bool:
    if not floor.fits(instance.places):
        return False
    floor.change(Running(instance.column.key, instance.column.service, instance.places), 1)
    return True


def _beyond(problem: Problem, made: Plan) -> str:
    """Which limit `made` is beyond, in words; empty where it keeps all."""
    if problem.budget_usd is not None and made.hourly_usd > problem.budget_usd * (1 + 1e-9) + 1e-9:
        return f"what runs costs more than the budget of ${problem.budget_usd:.2f}/h"
    used = units_used(problem, made.instances)
    over = [name for name, most in problem.quotas.items() if used[name] > most + 1e-6]
    if over:
        return f"what runs takes more {over[0]} than its quota"
    for service, said in zip(problem.services, made.services, strict=True):
        exact = exact_instances(service)
        if exact is not None and said.instances > exact:
            return f"{service.name} runs {said.instances} times, which is more than the {exact} asked for"
        mine = (i.column for i in made.instances if i.column.service == service.name and i.column.spot)
        if sum(c.requests_s for c in mine) > service.spot_share * said.capacity * (1 + 1e-6):
            return f"more of {service.name} runs on spot nodes than may"
    return ""
