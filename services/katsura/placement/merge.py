"""Equal nodes of many domains as one class: racks that differ by name only would make the search try them all in turn.

A merged problem is a relaxation (its bound holds for the real one too). `distribute` takes its counts back to domains:
what runs stays, the largest instances first, each where it opens the fewest nodes. `planner` does both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from katsura.placement.patterns import Column
from katsura.placement.problem import ANYWHERE, NodeClass, Problem
from katsura.placement.program import Extra


@dataclass(frozen=True, slots=True)
class Merged:
    """`classes` stand for all domains; `of` names the merged class of each real one, `nodes` counts its nodes."""

    classes: tuple[NodeClass, ...]
    of: Mapping[str, str]
    nodes: Mapping[str, int]


def merge(classes: Sequence[NodeClass]) -> Merged:
    """One class per kind of node."""
    kinds: dict[tuple[object, ...], list[NodeClass]] = defaultdict(list)
    for c in classes:
        device = c.device.name if c.device else ""
        kinds[device, c.core.name, c.accelerators, c.cores, c.ram_bytes, c.spot, c.hourly_usd].append(c)
    made: list[NodeClass] = []
    of: dict[str, str] = {}
    for same in kinds.values():
        first = same[0]
        label = f"{first.name.split('/')[0]}{'/spot' if first.spot else ''}"
        name = label if label not in {c.name for c in made} else f"{label}#{len(made)}"
        made.append(replace(first, name=name, domain=ANYWHERE, nodes=tuple(n for c in same for n in c.nodes)))
        of.update({c.name: name for c in same})
    return Merged(tuple(made), of, {c.name: len(c.nodes) for c in classes})


def merged_key(column: Column, merged: Merged) -> str:
    """The key of the merged column that `column` is one domain's case of."""
    return column.key_on(merged.of.__getitem__)


def merge_extra(extra: Extra, columns: Sequence[Column], merged: Merged) -> Extra:
    """The current plan, what moving costs and cuts, in terms of merged columns and classes."""
    if extra.limit_nodes:
        left = {c.name: float(len(c.nodes)) for c in merged.classes}
        for name, most in extra.limit_nodes.items():
            left[merged.of[name]] -= merged.nodes[name] - most
        extra = replace(extra, limit_nodes=left)
    if extra.running is None:
        return extra
    running: dict[str, int] = defaultdict(int)
    price: dict[str, float] = {}
    for column in columns:
        key = merged_key(column, merged)
        running[key] += extra.running.get(column.key, 0)
        price[key] = (extra.move_cost or {}).get(column.key, 0.0)
    return replace(extra, running=running, move_cost=price)


class _Rooms:
    """What is taken of each class, and how many nodes that opens."""

    def __init__(self, classes: Sequence[NodeClass], limits: Mapping[str, float]) -> None:
        self.classes = {c.name: c for c in classes}
        self.most = {c.name: limits.get(c.name, len(c.nodes)) for c in classes}
        self.taken = {c.name: [0.0, 0.0, 0.0] for c in classes}

    def _after(self, column: Column) -> dict[str, list[float]]:
        after: dict[str, list[float]] = {}
        for m in column.members:
            row = after.setdefault(m.node_class, list(self.taken[m.node_class]))
            for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
                row[k] += m.count * amount
        return after

    def _nodes(self, name: str, taken: Sequence[float]) -> int:
        c = self.classes[name]
        have = (c.accelerators, c.cores, c.ram_bytes)
        return max(int(-(-t // h)) if h and t > 1e-9 else 0 for t, h in zip(taken, have, strict=True))

    def price(self, column: Column) -> tuple[float, float] | None:
        """What `column` would open here (dollars per hour), then how much room is left; None where it does not fit."""
        opened = left = 0.0
        for name, taken in self._after(column).items():
            c, nodes = self.classes[name], self._nodes(name, taken)
            if nodes > self.most[name]:
                return None
            opened += (nodes - self._nodes(name, self.taken[name])) * max(c.hourly_usd, 1e-3)
            left += len(c.nodes) * (c.accelerators or c.cores) - (taken[0] or taken[1])
        return opened, left

    def take(self, column: Column) -> None:
        """Put it there."""
        self.taken.update(self._after(column))


def distribute(
    problem: Problem, columns: Sequence[Column], counts: Mapping[str, int], merged: Merged, extra: Extra
) -> list[int] | None:
    """Counts of real `columns` from counts by merged key, or None where something found no domain."""
    cases: dict[str, list[int]] = defaultdict(list)
    for i, column in enumerate(columns):
        cases[merged_key(column, merged)].append(i)
    rooms = _Rooms(problem.classes, extra.limit_nodes or {})
    made = [0] * len(columns)
    wide = {s.name: s.domains_min for s in problem.services}
    domains: dict[str, set[str]] = defaultdict(set)
    running = dict(extra.running or {})
    order = sorted((key for key in counts if counts[key]), key=lambda k: (-_size(columns[cases[k][0]]), k))
    for key in order:
        for _ in range(counts[key]):
            chosen = _choose(columns, cases[key], rooms, wide, domains, running)
            if chosen is None:
                return None
            rooms.take(columns[chosen])
            made[chosen] += 1
            domains[columns[chosen].service].add(columns[chosen].domain)
            running[columns[chosen].key] = running.get(columns[chosen].key, 0) - 1
    short = any(len(domains[name]) < least for name, least in wide.items() if domains[name])
    return None if short else made


def _size(column: Column) -> float:
    return max(len(column.members) * 1e6 + m.count * (m.accelerators * 1e3 + m.cores) for m in column.members)


def _choose(
    columns: Sequence[Column],
    cases: Sequence[int],
    rooms: _Rooms,
    wide: Mapping[str, int],
    domains: Mapping[str, set[str]],
    running: Mapping[str, int],
) -> int | None:
    best: tuple[tuple[float, ...], int] | None = None
    for i in cases:
        column = columns[i]
        price = rooms.price(column)
        if price is None:
            continue
        held = domains.get(column.service, set())
        repeats = len(held) < wide[column.service] and column.domain in held
        rank = (float(repeats), float(running.get(column.key, 0) <= 0), *price)
        if best is None or rank < best[0]:
            best = (rank, i)
    return best[1] if best else None
