"""Which member holds which reduction groups: even primaries, spread alternates, few moves.

Every group has the same cost, so giving each next group to the member that would finish it first minimises the slowest
member's share exactly (identical jobs on uniform machines). What a member serves or has loaded already stays with it as
far as its share allows.

A member loads what the next table gives it before it lets go of what the one in force does. So where its room is just
that of its part of two copies, a table gives it no more new groups than fit beside the old, and the next table goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log2

from katsura.domain.ids import InstanceId
from katsura.domain.leases import GroupRange, MemberLease
from katsura.domain.shape import Numerics
from katsura.domain.tables import Assignment, ExpertTable

ALTERNATES = 1
"""Members that hold a group besides its primary, where capacity allows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a table gives: members by rank, and per group its primary and its alternates."""

    members: tuple[MemberLease, ...]
    primary: tuple[InstanceId, ...]
    alternates: tuple[tuple[InstanceId, ...], ...]


def assign(
    members: Sequence[MemberLease], committed: ExpertTable | None, prepared: ExpertTable | None = None
) -> Layout | None:
    """The best layout over `members` (live, of one revision), or None where together they cannot hold every group.

    `prepared` says where groups were going, where no table is in force.
    """
    current = committed or prepared
    ranked = _ranked(members, current)
    if not ranked:
        return None
    if ranked[0].numerics is Numerics.INVARIANT:
        ranked = _one_fingerprint(ranked, current)
    space = _Space.of(ranked, committed)
    group_count = ranked[0].layout.group_count
    if sum(space.left.values()) < group_count:
        return None
    primary = _primaries(ranked, space, current, group_count)
    return Layout(tuple(ranked), primary, _alternates(ranked, space, current, primary))


@dataclass(frozen=True, slots=True)
class _Space:
    """Room while a layout is made, in groups, by member.

    Attributes:
        held: what the table in force gives it. left: groups that still fit into what it will hold.
        fresh: of those, how many it has room to load beside what it holds.
    """

    held: Mapping[InstanceId, frozenset[int]]
    left: Counter[InstanceId]
    fresh: Counter[InstanceId]

    @classmethod
    def of(cls, members: Sequence[MemberLease], committed: ExpertTable | None) -> _Space:
        held: dict[InstanceId, frozenset[int]] = {}
        for m in members:
            mine = committed.of(m.instance_id, m.incarnation) if committed else None
            ranges = (*mine.primary, *mine.alternate) if mine else ()
            held[m.instance_id] = frozenset(g for r in ranges for g in r.groups)
        left = Counter({m.instance_id: _capacity(m) for m in members})
        return cls(held, left, Counter({name: room - len(held[name]) for name, room in left.items()}))

    def fits(self, name: InstanceId, group: int) -> bool:
        """Whether it can hold one more, and have this one before it lets go of any."""
        return self.left[name] > 0 and (group in self.held[name] or self.fresh[name] > 0)

    def take(self, name: InstanceId, group: int, count: int = 1) -> None:
        """Give it the group; `count` -1: take it back."""
        self.left[name] -= count
        if group not in self.held[name]:
            self.fresh[name] -= count


def table_of(layout: Layout) -> tuple[Assignment, ...]:
    """The layout as assignments by rank; every layer is cut alike."""
    made = []
    for rank, member in enumerate(layout.members):
        name = member.instance_id
        first = tuple(g for g, owner in enumerate(layout.primary) if owner == name)
        second = tuple(g for g, owners in enumerate(layout.alternates) if name in owners)
        ranges = [(GroupRange(0, member.layer_count, groups),) if groups else () for groups in (first, second)]
        endpoints, print_ = member.data_endpoints, member.fingerprint
        made.append(Assignment(name, member.incarnation, rank, endpoints, print_, ranges[0], ranges[1]))
    return tuple(made)


def _ranked(members: Sequence[MemberLease], current: ExpertTable | None) -> list[MemberLease]:
    """Members of the current table keep their order; others follow by the start of their life."""
    before = {a.member_id: a.rank for a in current.assignments} if current else {}
    return sorted(members, key=lambda m: (before.get(m.instance_id, len(before)), m.start_ms, m.instance_id))


def _one_fingerprint(members: list[MemberLease], current: ExpertTable | None) -> list[MemberLease]:
    """Members that compute the same bits: those that can hold everything twice, or at least once; of these those that
    serve now, else the roomiest."""
    room: Counter[str] = Counter()
    for member in members:
        room[member.fingerprint] += _capacity(member)
    serving = {a.fingerprint for a in current.assignments} if current else set()
    needed = members[0].layout.group_count
    best = max(sorted(room), key=lambda p: (min(1 + ALTERNATES, room[p] // needed), p in serving, room[p]))
    return [m for m in members if m.fingerprint == best]


def _capacity(member: MemberLease) -> int:
    """Groups, in all layers, that fit into it."""
    bytes_per_group = member.group_bytes * member.layer_count
    fits = member.capacity_bytes // bytes_per_group if bytes_per_group else member.layout.group_count
    return min(fits, member.layout.group_count)


def _slowness(members: Sequence[MemberLease]) -> dict[InstanceId, float]:
    """Cost of a group on each member, in powers of two: smaller differences are noise of the self-measurement."""
    known = [m.unit_cost_s for m in members if m.unit_cost_s > 0]
    fastest = min(known, default=1.0)
    return {m.instance_id: 2.0 ** round(log2((m.unit_cost_s or fastest) / fastest)) for m in members}


def _shares(members: Sequence[MemberLease], room: Counter[InstanceId], group_count: int) -> Counter[InstanceId]:
    cost = _slowness(members)
    shares: Counter[InstanceId] = Counter()
    for _ in range(group_count):
        open_ = [m.instance_id for m in members if shares[m.instance_id] < room[m.instance_id]]
        shares[min(open_, key=lambda name: (shares[name] + 1) * cost[name])] += 1
    return shares


def _loaded(member: MemberLease) -> frozenset[int]:
    """Groups that it has in every layer."""
    layers = Counter(group for r in member.loaded for group in r.groups for _ in range(r.layer_start, r.layer_end))
    return frozenset(group for group, count in layers.items() if count >= member.layer_count)


def _primaries(
    members: Sequence[MemberLease], space: _Space, current: ExpertTable | None, group_count: int
) -> tuple[InstanceId, ...]:
    """A primary for each group: who has been it, who has it loaded, whoever has a share left; without one of these,
    whoever can have it beyond its share, and only then who must let go of others first."""
    share = _shares(members, space.left, group_count)
    before = {g: a.member_id for a in (current.assignments if current else ()) for r in a.primary for g in r.groups}
    loaded = {m.instance_id: _loaded(m) for m in members}
    primary: dict[int, InstanceId] = {}
    for able in (
        lambda name, group: before.get(group) == name and share[name] > 0 and space.fits(name, group),
        lambda name, group: group in loaded[name] and share[name] > 0 and space.fits(name, group),
        lambda name, group: share[name] > 0 and space.fits(name, group),
        lambda name, group: group in space.held[name] and space.left[name] > 0,
        space.fits,
        lambda name, group: space.left[name] > 0,
    ):
        for group in (g for g in range(group_count) if g not in primary):
            name = next((m.instance_id for m in members if able(m.instance_id, group)), None)
            if name is not None:
                primary[group] = name
                share[name] -= 1
                space.take(name, group)
    return tuple(primary[group] for group in range(group_count))


def _alternates(
    members: Sequence[MemberLease], space: _Space, current: ExpertTable | None, primary: Sequence[InstanceId]
) -> tuple[tuple[InstanceId, ...], ...]:
    """Stand-ins for each group: equal fingerprint, room left; whoever has it already, then whoever stands in least.

    The groups of one primary are spread over several members, so that its loss burdens no single one.
    """
    print_ = {m.instance_id: m.fingerprint for m in members}
    has = {m.instance_id: _loaded(m) for m in members}
    before = {(g, a.member_id) for a in (current.assignments if current else ()) for r in a.alternate for g in r.groups}
    burden: Counter[tuple[InstanceId, InstanceId]] = Counter()
    chosen: list[list[InstanceId]] = [[] for _ in primary]

    def suits(name: InstanceId, group: int) -> bool:
        owner = primary[group]
        return name != owner and name not in chosen[group] and print_[name] == print_[owner]

    for _ in range(ALTERNATES):
        bare = []
        for group, owner in enumerate(primary):
            able = [name for name in print_ if space.fits(name, group) and suits(name, group)]
            if not able:
                bare.append(group)
                continue
            name = min(
                able, key=lambda n: ((group, n) not in before, group not in has[n], burden[owner, n], -space.left[n], n)
            )
            chosen[group].append(name)
            space.take(name, group)
            burden[owner, name] += 1
        for group in bare:
            _make_room(group, chosen, space, suits)
    return tuple(tuple(names) for names in chosen)


def _make_room(
    group: int, chosen: list[list[InstanceId]], space: _Space, suits: Callable[[InstanceId, int], bool]
) -> None:
    """Let another member stand in for some group, so that the one that did can stand in for `group`: now, or by the
    next table, where it holds too much to load it now."""
    for other, names in enumerate(chosen):
        for name in names:
            to = next((n for n in space.left if space.fits(n, other) and suits(n, other)), None)
            if to is not None and suits(name, group):
                names[names.index(name)] = to
                space.take(to, other)
                space.take(name, other, -1)
                if space.fits(name, group):
                    chosen[group].append(name)
                    space.take(name, group)
                return
