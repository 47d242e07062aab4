"""Counts become processes on named nodes: what runs already stays, the largest goes first, nodes are filled one by one.

What stays must not hold more nodes open than the counts need: the emptiest are given up, and what ran there moves.

Accelerator counts are powers of two, so taking the largest first is exact for them; cores and memory may need a node
more than the program counted, and then `packed` says so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from katsura.placement.patterns import Column, Member
from katsura.placement.plan import Instance, Place
from katsura.placement.problem import NodeClass

Held = Mapping[tuple[str, str, str], Sequence[str]]
"""Nodes that hold processes now, by (service, role, class)."""
_SLACK = 1e-6


@dataclass(slots=True)
class _Room:
    name: str
    accelerators: int
    cores: float
    ram_bytes: float
    used: bool = False

    def fits(self, m: Member) -> bool:
        return (
            self.accelerators >= m.accelerators
            and self.cores >= m.cores - _SLACK
            and self.ram_bytes >= m.ram_bytes * (1 - _SLACK)
        )

    def take(self, m: Member) -> None:
        self.accelerators -= m.accelerators
        self.cores -= m.cores
        self.ram_bytes -= m.ram_bytes
        self.used = True


@dataclass(frozen=True, slots=True)
class Packed:
    """Instances on nodes; `left` are classes on which something found no room."""

    instances: tuple[Instance, ...]
    left: frozenset[str]

    def nodes_used(self) -> dict[str, int]:
        """Used nodes by class."""
        used: dict[str, set[str]] = defaultdict(set)
        for instance in self.instances:
            for place in instance.places:
                used[place.node_class].add(place.node)
        return {name: len(nodes) for name, nodes in used.items()}


def pack(columns: Sequence[tuple[Column, int]], classes: Sequence[NodeClass], held: Held | None = None) -> Packed:
    """Put `count` instances of each column on nodes of their classes.

    Args:
        held: where processes stand now; they keep their node where the plan still wants them there.
    """
    rooms = {c.name: [_Room(n, c.accelerators, c.cores, c.ram_bytes) for n in c.nodes] for c in classes}
    keep = _kept(columns, classes, held or {})
    wanted: list[tuple[Member, str, int, int]] = []
    number = 0
    owner: list[Column] = []
    for column, count in columns:
        for _ in range(count):
            owner.append(column)
            wanted += [(m, column.service, number, copy) for m in column.members for copy in range(m.count)]
            number += 1
    wanted.sort(key=lambda w: (-w[0].accelerators, -w[0].cores, -w[0].ram_bytes, w[2], w[0].role, w[3]))
    places: dict[int, list[Place]] = defaultdict(list)
    left: set[str] = set()
    later: list[tuple[Member, str, int, int]] = []
    stand: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in wanted:
        m, service, index, _ = item
        room = _held_room(keep.get((service, m.role, m.node_class), []), rooms[m.node_class], m)
        if room is None:
            later.append(item)
        else:
            stand[service, m.role].add(room.name)
            _put(m, room, places[index])
    for m, service, index, _ in later:
        room = _first_room(rooms[m.node_class], m, stand[service, m.role])
        if room is None:
            left.add(m.node_class)
        else:
            stand[service, m.role].add(room.name)
            _put(m, room, places[index])
    made = (Instance(column, tuple(places[i])) for i, column in enumerate(owner))
    return Packed(tuple(i for i in made if len(i.places) == sum(m.count for m in i.column.members)), frozenset(left))


def nodes_needed(columns: Sequence[tuple[Column, int]], classes: Sequence[NodeClass]) -> dict[str, int]:
    """Nodes of each class that `columns` fill at least, were they cut to measure."""
    use: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for column, count in columns:
        for m in column.members:
            for k, amount in enumerate((m.accelerators, m.cores, m.ram_bytes)):
                use[m.node_class][k] += count * m.count * amount
    have = {c.name: (c.accelerators, c.cores, c.ram_bytes) for c in classes}
    return {
        name: max(math.ceil(u / h - _SLACK) if h else 0 for u, h in zip(row, have[name], strict=True))
        for name, row in use.items()
    }


def _kept(
    columns: Sequence[tuple[Column, int]], classes: Sequence[NodeClass], held: Held
) -> dict[tuple[str, str, str], list[str]]:
    """`held` on the fullest nodes of each class, no more of them than are needed."""
    size: dict[tuple[str, str, str], float] = {}
    for column, _ in columns:
        for m in column.members:
            size[column.service, m.role, m.node_class] = m.accelerators or m.cores
    fill: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for key, nodes in held.items():
        for node in nodes:
            fill[key[2]][node] += size.get(key, 0.0)
    needed = nodes_needed(columns, classes)
    stay = {
        name: set(sorted(filled, key=lambda n: (-filled[n], n))[: needed.get(name, 0)]) for name, filled in fill.items()
    }
    return {key: [node for node in nodes if node in stay[key[2]]] for key, nodes in held.items()}


def _put(m: Member, room: _Room, places: list[Place]) -> None:
    room.take(m)
    places.append(Place(m.role, m.node_class, room.name, m.accelerators, m.cores, m.ram_bytes))


def _held_room(nodes: list[str], rooms: list[_Room], m: Member) -> _Room | None:
    for node in nodes:
        room = next((r for r in rooms if r.name == node and r.fits(m)), None)
        if room is not None:
            nodes.remove(node)
            return room
    return None


def _first_room(rooms: list[_Room], m: Member, stand: set[str]) -> _Room | None:
    """The used node with least room that still fits, else the first unused one.

    Where one node holds all processes of this role so far (`stand`), one on cores goes to another used one if it can:
    two routers shall not end with one node.
    """
    used = [r for r in rooms if r.used and r.fits(m)]
    apart = [r for r in used if r.name not in stand] if len(stand) == 1 and not m.accelerators else []
    if used:
        return min(apart or used, key=lambda r: (r.accelerators, r.cores, r.name))
    return next((r for r in rooms if not r.used and r.fits(m)), None)
