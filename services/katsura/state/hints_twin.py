"""The hints store in one process's memory: what RedisHintStore means, in plain Python. For tests and simulations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from katsura.domain.clock import Clock
from katsura.domain.ids import DeploymentName, Incarnation, InstanceId, ProgramId
from katsura.domain.kv_events import KvBatch, KvSnapshot
from katsura.domain.leases import MemberLease, RouterLease, ShardLease
from katsura.domain.tables import EndpointTable, ExpertTables
from katsura.domain.tenant import Tenant
from katsura.state.hints import (
    AFFINITY_TTL_MS,
    COORDINATOR_TTL_MS,
    DECISION_NOTES,
    KV_STREAM_BATCHES,
    LEASE_TTL_MS,
    Affinity,
    Coordination,
    Decided,
    Feed,
    FeedEntry,
    FeedKind,
    Fence,
    Finished,
    LeaseNotice,
    Note,
    Role,
    SnapshotNotice,
    TableNotice,
    Versioned,
    fence_lost,
    lease_lost,
    table_moved,
)

_FLEET_NOTES = 1024
_OF_A_LIFE = (KvBatch, SnapshotNotice)


@dataclass(slots=True)
class _Log:
    """A bounded log; cursors are the running number of an entry."""

    limit: int
    first: int = 1
    notes: list[Note] = field(default_factory=list)

    def append(self, note: Note) -> None:
        self.notes.append(note)
        if len(self.notes) > self.limit:
            del self.notes[0]
            self.first += 1


class TwinHintStore:
    """See `katsura.state.hints.HintStore`.

    Args:
        clock: the store's clock (`wall_ms`); leases end when it has passed their time.
        kv_stream_batches: as KV_STREAM_BATCHES.
    """

    def __init__(self, clock: Clock, kv_stream_batches: int = KV_STREAM_BATCHES) -> None:
        self._clock = clock
        self._kv_limit = kv_stream_batches
        self._changed = asyncio.Condition()
        self._leases: dict[tuple[Role, InstanceId], tuple[Any, int]] = {}
        self._logs: dict[Feed, _Log] = {}
        self._snapshots: dict[InstanceId, KvSnapshot] = {}
        self._holes: set[InstanceId] = set()
        self._affinity: dict[tuple[bytes, ProgramId], tuple[Affinity, int]] = {}
        self._coordinator: tuple[Fence, int] | None = None
        self._tokens = 0
        self._versions = 0
        self._expert_tables: dict[tuple[DeploymentName, str], Versioned[ExpertTables]] = {}
        self._endpoints: dict[DeploymentName, Versioned[EndpointTable]] = {}

    async def put_shard(self, lease: ShardLease, ttl_ms: int = LEASE_TTL_MS) -> bool:
        """Put or refresh a lease."""
        await self._put(Role.SHARD, lease, ttl_ms)
        return self._snapshot_wanted(lease.instance_id, lease.incarnation)

    async def put_member(self, lease: MemberLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease."""
        await self._put(Role.MEMBER, lease, ttl_ms)

    async def put_router(self, lease: RouterLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease."""
        await self._put(Role.ROUTER, lease, ttl_ms)

    async def drop_lease(self, role: Role, instance_id: InstanceId, incarnation: Incarnation) -> None:
        """Give a lease back."""
        held = self._live(role).get(instance_id)
        if held is not None and held.incarnation == incarnation:
            del self._leases[role, instance_id]
            await self._note(Feed(FeedKind.FLEET), LeaseNotice(role, instance_id))

    async def list_shards(self) -> tuple[ShardLease, ...]:
        """Live shards."""
        return self._list(Role.SHARD)

    async def list_members(self) -> tuple[MemberLease, ...]:
        """Live members."""
        return self._list(Role.MEMBER)

    async def list_routers(self) -> tuple[RouterLease, ...]:
        """Live routers."""
        return self._list(Role.ROUTER)

    async def publish_kv(self, shard_id: InstanceId, batch: KvBatch) -> bool:
        """Append a batch."""
        self._check_life(shard_id, batch.incarnation)
        log = self._logs.get(Feed(FeedKind.KV, shard_id))
        last = log.notes[-1] if log is not None and log.notes else None
        known = last.sequence if isinstance(last, _OF_A_LIFE) and last.incarnation == batch.incarnation else 0
        snapshot = self._snapshots.get(shard_id)
        taken = snapshot.sequence if snapshot is not None else 0
        if batch.sequence > max(known, taken) + 1 or batch.sequence - taken > self._kv_limit / 2:
            self._holes.add(shard_id)
        await self._note(Feed(FeedKind.KV, shard_id), batch)
        return self._snapshot_wanted(shard_id, batch.incarnation)

    async def put_kv_snapshot(self, shard_id: InstanceId, snapshot: KvSnapshot) -> None:
        """Replace the snapshot."""
        self._check_life(shard_id, snapshot.incarnation)
        self._snapshots[shard_id] = snapshot
        self._holes.discard(shard_id)
        await self._note(Feed(FeedKind.KV, shard_id), SnapshotNotice(snapshot.incarnation, snapshot.sequence))

    async def read_kv_snapshot(self, shard_id: InstanceId) -> KvSnapshot | None:
        """The last snapshot."""
        return self._snapshots.get(shard_id)

    async def read_feeds(self, cursors: Mapping[Feed, str], timeout_s: float, limit: int = 512) -> Sequence[FeedEntry]:
        """Entries after the cursors."""
        found: list[FeedEntry] = []

        def ready() -> bool:
            found.extend(entry for feed, cursor in cursors.items() for entry in self._after(feed, cursor, limit))
            return bool(found)

        await self._wait(ready, timeout_s)
        return found

    async def get_affinity(self, tenant: Tenant, program: ProgramId) -> Affinity | None:
        """Where a program ran last."""
        affinity, expire_ms = self._affinity.get((tenant.salt, program), (None, 0))
        return affinity if expire_ms > self._clock.wall_ms() else None

    async def put_affinity(
        self, tenant: Tenant, program: ProgramId, affinity: Affinity, ttl_ms: int = AFFINITY_TTL_MS
    ) -> None:
        """Remember where a program runs."""
        self._affinity[tenant.salt, program] = (affinity, self._clock.wall_ms() + ttl_ms)

    async def drop_affinity(self, tenant: Tenant, program: ProgramId, shard_id: InstanceId) -> None:
        """Forget it, if it still names `shard_id`."""
        held = await self.get_affinity(tenant, program)
        if held is not None and held.shard_id == shard_id:
            del self._affinity[tenant.salt, program]

    async def note_decision(self, note: Decided | Finished) -> None:
        """Append to the ledger."""
        if isinstance(note, Decided):
            note = replace(note, at_ms=self._clock.wall_ms())
        await self._note(Feed(FeedKind.DECISIONS), note)

    async def hold_coordinator(
        self, holder: InstanceId, incarnation: Incarnation, ttl_ms: int = COORDINATOR_TTL_MS
    ) -> Coordination:
        """Take, refresh or read the coordinator lease."""
        now = self._clock.wall_ms()
        if self._coordinator is None or self._coordinator[1] <= now:
            self._tokens += 1
            self._coordinator = (Fence(holder, incarnation, self._tokens), now + ttl_ms)
        fence, expire_ms = self._coordinator
        mine = (fence.holder, fence.incarnation) == (holder, incarnation)
        self._coordinator = (fence, now + ttl_ms if mine else expire_ms)
        return Coordination(fence, mine)

    async def release_coordinator(self, fence: Fence) -> None:
        """Give the lease back."""
        if self._coordinator is not None and self._coordinator[0] == fence:
            self._coordinator = None

    async def write_expert_tables(self, fence: Fence, tables: ExpertTables, expected_version: str) -> str:
        """Replace the tables of a revision."""
        name = (tables.deployment, tables.revision_id)
        written = self._next(fence, self._expert_tables.get(name), tables, expected_version)
        self._expert_tables[name] = written
        await self._note(Feed(FeedKind.FLEET), TableNotice(tables.deployment))
        return written.version

    async def drop_expert_tables(self, fence: Fence, deployment: DeploymentName, revision_id: str) -> None:
        """Forget the tables of a revision."""
        self._check_fence(fence)
        self._versions += 1
        empty = Versioned(ExpertTables(deployment, revision_id), str(self._versions))
        self._expert_tables[deployment, revision_id] = empty
        await self._note(Feed(FeedKind.FLEET), TableNotice(deployment))

    async def read_expert_tables(self, deployment: DeploymentName, revision_id: str) -> Versioned[ExpertTables]:
        """The tables."""
        nothing = Versioned(ExpertTables(deployment, revision_id), "")
        return self._expert_tables.get((deployment, revision_id), nothing)

    async def wait_expert_tables(
        self, deployment: DeploymentName, revision_id: str, after_version: str, timeout_s: float
    ) -> Versioned[ExpertTables]:
        """The tables as soon as their version is another one."""
        unchanged = Versioned(ExpertTables(deployment, revision_id), after_version)
        name = (deployment, revision_id)
        await self._wait(lambda: self._expert_tables.get(name, unchanged).version != after_version, timeout_s)
        return self._expert_tables.get(name, unchanged)

    async def list_expert_tables(self) -> tuple[Versioned[ExpertTables], ...]:
        """All tables."""
        held = (self._expert_tables[name] for name in sorted(self._expert_tables))
        return tuple(found for found in held if found.value.committed or found.value.prepared)

    async def write_endpoints(self, fence: Fence, table: EndpointTable, expected_version: str) -> str:
        """Replace a deployment's endpoint table."""
        written = self._next(fence, self._endpoints.get(table.deployment), table, expected_version)
        self._endpoints[table.deployment] = written
        await self._note(Feed(FeedKind.FLEET), TableNotice(table.deployment))
        return written.version

    async def list_endpoints(self) -> tuple[Versioned[EndpointTable], ...]:
        """All endpoint tables."""
        return tuple(self._endpoints[name] for name in sorted(self._endpoints))

    async def close(self) -> None:
        """Nothing to let go of."""

    def lose_everything(self) -> None:
        """Be empty, as a server is that came back without its data; clocks and versions go on."""
        for log in self._logs.values():
            log.first += len(log.notes)
            log.notes.clear()
        self._leases.clear()
        self._snapshots.clear()
        self._holes.clear()
        self._affinity.clear()
        self._expert_tables.clear()
        self._endpoints.clear()
        self._coordinator = None

    async def _put(self, role: Role, lease: ShardLease | MemberLease | RouterLease, ttl_ms: int) -> None:
        held = self._live(role).get(lease.instance_id)
        if held is not None and held.incarnation != lease.incarnation and held.start_ms > lease.start_ms:
            raise lease_lost(lease.instance_id)
        now = self._clock.wall_ms()
        self._leases[role, lease.instance_id] = (replace(lease, put_ms=now), now + ttl_ms)
        await self._note(Feed(FeedKind.FLEET), LeaseNotice(role, lease.instance_id))

    def _live(self, role: Role) -> dict[InstanceId, Any]:
        now = self._clock.wall_ms()
        self._leases = {key: held for key, held in self._leases.items() if held[1] > now}
        return {name: lease for (kind, name), (lease, _) in self._leases.items() if kind is role}

    def _list(self, role: Role) -> tuple[Any, ...]:
        live = self._live(role)
        return tuple(live[name] for name in sorted(live))

    def _check_life(self, shard_id: InstanceId, incarnation: Incarnation) -> None:
        held = self._live(Role.SHARD).get(shard_id)
        if held is not None and held.incarnation != incarnation:
            raise lease_lost(shard_id)

    def _snapshot_wanted(self, shard_id: InstanceId, incarnation: Incarnation) -> bool:
        snapshot = self._snapshots.get(shard_id)
        return snapshot is None or snapshot.incarnation != incarnation or shard_id in self._holes

    def _check_fence(self, fence: Fence) -> None:
        held = self._coordinator
        if held is None or held[0] != fence or held[1] <= self._clock.wall_ms():
            raise fence_lost(fence)

    def _next(self, fence: Fence, held: Versioned[Any] | None, value: Any, expected_version: str) -> Versioned[Any]:
        self._check_fence(fence)
        if (held.version if held else "") != expected_version:
            raise table_moved()
        self._versions += 1
        return Versioned(value, str(self._versions))

    async def _note(self, feed: Feed, note: Note) -> None:
        limits = {FeedKind.KV: self._kv_limit, FeedKind.DECISIONS: DECISION_NOTES, FeedKind.FLEET: _FLEET_NOTES}
        self._logs.setdefault(feed, _Log(limits[feed.kind])).append(note)
        async with self._changed:
            self._changed.notify_all()

    def _after(self, feed: Feed, cursor: str, limit: int) -> list[FeedEntry]:
        log = self._logs.get(feed, _Log(1))
        start = max(int(cursor or 0) + 1 - log.first, 0)
        notes = log.notes[start : start + limit]
        return [FeedEntry(feed, str(log.first + start + i), note) for i, note in enumerate(notes)]

    async def _wait(self, ready: Any, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(ready)
        except TimeoutError:
            return
