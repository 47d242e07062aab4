"""What a member has to hold: the groups of the table in use, of the table being prepared, and those asked for by Load.

PREPARED names us -> load what is missing -> say `prepared_epoch` in the lease
COMMITTED         -> say `serving_epoch`; free what no table names, once no frame of an older epoch is on its way

The coordinator prepares what fits beside the table in force. Where it cannot (a group has no copy left, so nothing can
be served until somebody loads it), what is prepared takes the place of what is in force.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.leases import NO_EPOCH, GroupRange
from katsura.domain.tables import ExpertTable, ExpertTables

Key = tuple[int, int]
"""(layer, reduction group)."""

SILENT_S = 2.0
"""A client that has sent nothing for this long has no step under way."""


@dataclass(frozen=True, slots=True)
class Residency:
    """What to do now, and what may be said in the lease; `load` in the order in which it is needed."""

    load: tuple[Key, ...]
    free: tuple[Key, ...]
    prepared_epoch: Epoch
    serving_epoch: Epoch


def decide(
    tables: ExpertTables,
    member_id: InstanceId,
    incarnation: Incarnation,
    loaded: frozenset[Key],
    asked: frozenset[Key],
    room: int,
) -> Residency:
    """Compare what is `loaded` with what tables and Load calls (`asked`) want of this life of the member.

    `room`: keys that it may hold.
    """
    committed, prepared = (_assigned(table, member_id, incarnation) for table in (tables.committed, tables.prepared))
    keep = committed if len(committed | prepared | asked) <= room else committed & prepared
    missing = [key for wanted in (keep, prepared, asked) for key in sorted(wanted - loaded)]
    serving = tables.committed.epoch if tables.committed and committed <= loaded else NO_EPOCH
    ready = tables.prepared.epoch if tables.prepared and prepared <= loaded else serving
    return Residency(
        load=tuple(dict.fromkeys(missing)),
        free=tuple(sorted(loaded - keep - prepared - asked)),
        prepared_epoch=ready,
        serving_epoch=serving,
    )


def is_placed(
    tables: ExpertTables, member_id: InstanceId, incarnation: Incarnation, only: str, loaded: frozenset[Key]
) -> bool:
    """Whether this life may be counted on: the table in force names it, and it holds what that gives it.

    A table comes into force when every member in it has loaded its part; so from then on one of them may be lost.
    `only`: fingerprint of the members that it may stand in for; empty: any. Where the table has none of those, it is
    nobody's alternate and can but wait to take over all.
    """
    table = tables.committed
    if table is None:
        return False
    if table.of(member_id, incarnation) is None:
        return only != "" and all(each.fingerprint != only for each in table.assignments)
    return _assigned(table, member_id, incarnation) <= loaded


def _assigned(table: ExpertTable | None, member_id: InstanceId, incarnation: Incarnation) -> frozenset[Key]:
    assignment = table.of(member_id, incarnation) if table is not None else None
    return frozenset() if assignment is None else keys_of((*assignment.primary, *assignment.alternate))


def keys_of(ranges: Iterable[GroupRange]) -> frozenset[Key]:
    """Every (layer, group) of `ranges`."""
    return frozenset(
        (layer, group) for r in ranges for layer in range(r.layer_start, r.layer_end) for group in r.groups
    )


def ranges_of(keys: Iterable[Key]) -> tuple[GroupRange, ...]:
    """The fewest ranges over runs of layers that hold the same groups, by layer."""
    by_layer: dict[int, list[int]] = {}
    for layer, group in sorted(keys):
        by_layer.setdefault(layer, []).append(group)
    ranges: list[GroupRange] = []
    for layer, groups in by_layer.items():
        last = ranges[-1] if ranges else None
        if last is not None and last.layer_end == layer and last.groups == tuple(groups):
            ranges[-1] = GroupRange(last.layer_start, layer + 1, last.groups)
        else:
            ranges.append(GroupRange(layer, layer + 1, tuple(groups)))
    return tuple(ranges)


@dataclass(slots=True)
class LastFrame:
    """The newest epoch that a client has sent by, and when (monotonic seconds)."""

    epoch: int
    at_s: float


def may_free(clients: Mapping[int, LastFrame], epoch: Epoch, now_s: float) -> bool:
    """Whether every client has turned to `epoch` or is silent, so that nothing older is under way."""
    return all(last.epoch >= epoch or now_s - last.at_s >= SILENT_S for last in clients.values())
