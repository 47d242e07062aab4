"""The coordinator's decision for one (deployment, revision): from leases and tables to the next tables.

    nothing prepared   layout should change  -> PREPARE it under the next epoch
    prepared           all members loaded it -> COMMIT
                       a member left or was reborn, or one made no progress for too long -> PREPARE without it
                       else wait; members that join meanwhile wait for the next epoch

A committed table is replaced only by another committed one; so the data plane always has the last that was whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from katsura.domain.ids import Epoch, Incarnation, InstanceId
from katsura.domain.leases import NO_EPOCH, MemberLease, ShardLease
from katsura.domain.tables import ExpertTable, ExpertTables
from katsura.router.core.assign import assign, table_of

Life = tuple[InstanceId, Incarnation]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a member has come with the prepared table: bytes that it had loaded, and since when no more."""

    epoch: Epoch
    loaded_bytes: int
    since_s: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What the coordinator remembers between two looks. Losing it costs time, never correctness."""

    progress: Mapping[Life, Progress] = field(default_factory=dict)
    silent: frozenset[Life] = frozenset()
    """Lives that were named and did not load; they are left out until they are reborn or catch up."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write (None: nothing), what to remember, and why, for the log."""

    tables: ExpertTables | None
    watched: Watched
    reason: str


def decide(
    members: Sequence[MemberLease],
    shards: Sequence[ShardLease],
    tables: ExpertTables,
    watched: Watched,
    now_s: float,
    patience_s: float,
) -> Decision:
    """Look once.

    Args:
        members: live members of this (deployment, revision); shards: its live shards, for the epochs they have seen.
        tables: as stored.
        watched: from the last decision.
        now_s: a clock that only moves forward, in seconds.
        patience_s: how long a member may load nothing before the table is made without it.
    """
    watched = _observed(members, tables, watched, now_s)
    prepared = tables.prepared
    if prepared is None:
        return _plan(members, shards, tables, watched, "the members changed")
    waiting = _waiting_for(members, prepared)
    if waiting is None:
        return _plan(members, shards, tables, watched, f"epoch {prepared.epoch} names members that are gone")
    if not waiting:
        committed = ExpertTables(tables.deployment, tables.revision_id, committed=prepared)
        return Decision(committed, watched, f"every member has loaded epoch {prepared.epoch}")
    late = {life for life in waiting if now_s - watched.progress[life].since_s > patience_s}
    if late:
        without = replace(watched, silent=watched.silent | late)
        names = ", ".join(sorted(name for name, _ in late))
        why = f"{names} loaded nothing for {patience_s:g} s"
        decision = _plan(members, shards, tables, without, why, needed=False)
        if decision.tables is not None:
            return decision
    return Decision(None, watched, f"{len(waiting)} of {len(prepared.assignments)} members still load")


def _plan(
    members: Sequence[MemberLease],
    shards: Sequence[ShardLease],
    tables: ExpertTables,
    watched: Watched,
    why: str,
    needed: bool = True,
) -> Decision:
    """A new table over the members that are able; where it is `needed`, silent ones are tried before there is none."""
    able = [m for m in members if not m.draining]
    heard = [m for m in able if _life(m) not in watched.silent]
    layout = assign(heard, tables.committed, tables.prepared)
    if layout is None and needed:
        watched = replace(watched, silent=frozenset())
        layout = assign(able, tables.committed, tables.prepared)
    if layout is None:
        return Decision(None, watched, f"{len(able)} members cannot hold every group")
    first = layout.members[0]
    wanted = ExpertTable(
        tables.deployment, tables.revision_id, NO_EPOCH, first.layer_count, first.layout, table_of(layout)
    )
    if tables.committed and wanted == replace(tables.committed, epoch=NO_EPOCH):
        stands = replace(tables, prepared=None) if tables.prepared else None
        return Decision(stands, watched, f"epoch {tables.committed.epoch} stands")
    seen = [t.epoch for t in (tables.committed, tables.prepared) if t] + [s.epoch for s in shards]
    seen += [epoch for m in members for epoch in (m.prepared_epoch, m.serving_epoch)]
    epoch = Epoch(1 + max(seen, default=NO_EPOCH))
    return Decision(replace(tables, prepared=replace(wanted, epoch=epoch)), watched, f"{why}: preparing epoch {epoch}")


def _observed(members: Sequence[MemberLease], tables: ExpertTables, watched: Watched, now_s: float) -> Watched:
    """Progress and silence as this look sees them: bytes that arrive end a silence."""
    epoch = tables.prepared.epoch if tables.prepared else NO_EPOCH
    progress: dict[Life, Progress] = {}
    silent: set[Life] = set()
    for member in members:
        life = _life(member)
        fresh = Progress(epoch, member.loaded_bytes, now_s)
        known = watched.progress.get(life, fresh)
        same_bytes = known.loaded_bytes == member.loaded_bytes
        progress[life] = known if same_bytes and known.epoch == epoch else fresh
        if life in watched.silent and same_bytes:
            silent.add(life)
    return Watched(progress, frozenset(silent))


def _waiting_for(members: Sequence[MemberLease], prepared: ExpertTable) -> set[Life] | None:
    """Lives that have not loaded the prepared table yet; None where one of them can no longer serve."""
    live = {_life(m): m for m in members if not m.draining}
    named = {(a.member_id, a.incarnation) for a in prepared.assignments}
    if not named <= live.keys():
        return None
    return {life for life in named if live[life].prepared_epoch < prepared.epoch}


def _life(member: MemberLease) -> Life:
    return member.instance_id, member.incarnation
