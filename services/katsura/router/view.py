"""What a router sees: leases, KV pages, load in flight and tables, followed in the hints store.

One task reads the feeds and is the only writer of what it holds; decisions read it between two of its steps. When the
store cannot be reached, the view stays as it was and says how old it is; a store that came back empty is given one
lease time to fill again before shards that it does not list are let go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from katsura.domain.clock import Clock
from katsura.domain.errors import DataLossError, TemporaryError
from katsura.domain.ids import DeploymentName, InstanceId
from katsura.domain.kv_events import KvBatch
from katsura.domain.leases import MemberLease, ShardLease
from katsura.domain.tables import EndpointTable, ExpertTables
from katsura.router.core.ledger import Entry, Ledger
from katsura.router.core.mirror import KvMirror
from katsura.state.hints import (
    HEARTBEAT_S,
    LEASE_TTL_MS,
    Decided,
    Feed,
    FeedEntry,
    FeedKind,
    Finished,
    HintStore,
    LeaseNotice,
    Role,
    SnapshotNotice,
    TableNotice,
)
from katsura.telemetry import log

_LOG = log.get(__name__)
_FORGET_S = 30.0
"""A shard whose lease is gone is forgotten with its pages after this long."""
_RETRY_S = 0.2
_FLEET, _DECISIONS = Feed(FeedKind.FLEET), Feed(FeedKind.DECISIONS)


@dataclass(slots=True)
class View:
    """The view; `run` keeps it, everybody else reads."""

    store: HintStore
    clock: Clock
    mirror: KvMirror = field(default_factory=KvMirror)
    ledger: Ledger = field(default_factory=Ledger)
    shards: dict[InstanceId, ShardLease] = field(default_factory=dict)
    members: dict[InstanceId, MemberLease] = field(default_factory=dict)
    endpoints: dict[DeploymentName, EndpointTable] = field(default_factory=dict)
    tables: dict[tuple[DeploymentName, str], ExpertTables] = field(default_factory=dict)
    """By deployment and revision; kept where the store lost them, so that the coordinator can write them again."""
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once everything that was in the store at start has been read."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at every change of leases or tables; whoever waits for it clears it."""
    awaited: dict[str, asyncio.Event] = field(default_factory=dict)
    """By decision id, set once the decision has been read back; whoever waits for it puts it here and takes it away."""
    _cursors: dict[Feed, str] = field(default_factory=lambda: {_FLEET: "", _DECISIONS: ""})
    _listed_s: float = float("-inf")
    _lost_since_s: float | None = None
    _grace_until_s: float = 0.0
    _seen_s: dict[InstanceId, float] = field(default_factory=dict)

    @property
    def stale_s(self) -> float:
        """Seconds since the store was last reached; 0 while it is."""
        return 0.0 if self._lost_since_s is None else self.clock.monotonic_s() - self._lost_since_s

    async def run(self) -> None:
        """Follow the store until cancelled."""
        while True:
            try:
                await self.step(HEARTBEAT_S / 2)
            except TemporaryError as error:
                if self._lost_since_s is None:
                    self._lost_since_s = self.clock.monotonic_s()
                    _LOG.warning("deciding from the last view", why=error.message)
                await asyncio.sleep(_RETRY_S)

    async def step(self, timeout_s: float) -> None:
        """Read what is new, waiting up to `timeout_s` for it."""
        if self.clock.monotonic_s() - self._listed_s >= HEARTBEAT_S:
            await self._list_leases()
            await self._read_tables()
        entries = await self.store.read_feeds(self._cursors, timeout_s if self.caught_up.is_set() else 0.0)
        if self._lost_since_s is not None:
            _LOG.info("the store is back", after_s=round(self.stale_s, 1))
            self._lost_since_s = None
            self._grace_until_s = self.clock.monotonic_s() + LEASE_TTL_MS / 1000
        await self._take(entries)
        if not entries:
            self.caught_up.set()

    async def _take(self, entries: Sequence[FeedEntry]) -> None:
        notes = {type(entry.note) for entry in entries}
        roles = {entry.note.role for entry in entries if isinstance(entry.note, LeaseNotice)}
        if roles & {Role.SHARD, Role.MEMBER}:
            await self._list_leases()
        if TableNotice in notes:
            await self._read_tables()
        begun_again: set[Feed] = set()
        for entry in entries:
            if entry.feed not in begun_again:
                self._cursors[entry.feed] = entry.cursor
                if await self._apply(entry):
                    begun_again.add(entry.feed)

    async def _apply(self, entry: FeedEntry) -> bool:
        """Apply one entry; True where its feed must be read again from the oldest entry kept."""
        shard = InstanceId(entry.feed.name)
        match entry.note:
            case KvBatch() as batch:
                return not self.mirror.apply(shard, batch) and await self._load_snapshot(shard)
            case SnapshotNotice(incarnation, sequence):
                return self.mirror.wants(shard, incarnation, sequence) and await self._load_snapshot(shard)
            case Decided(decision_id, shard_id, incarnation, prefill_tokens, at_ms):
                self.ledger.decided(decision_id, Entry(shard_id, incarnation, prefill_tokens, at_ms))
                if (event := self.awaited.get(decision_id)) is not None:
                    event.set()
                if shard_id in self.shards:
                    self.ledger.settle(self.shards[shard_id])
            case Finished(decision_id):
                self.ledger.finished(decision_id)
            case _:
                pass
        return False

    async def _load_snapshot(self, shard: InstanceId) -> bool:
        try:
            snapshot = await self.store.read_kv_snapshot(shard)
        except DataLossError as error:
            _LOG.warning("a snapshot is passed over", shard=shard, why=error.message)
            return False
        if snapshot is None or not self.mirror.wants(shard, snapshot.incarnation, snapshot.sequence):
            return False
        self.mirror.load(shard, snapshot)
        self._cursors[Feed(FeedKind.KV, shard)] = ""
        return True

    async def _list_leases(self) -> None:
        shards = {lease.instance_id: lease for lease in await self.store.list_shards()}
        members = {lease.instance_id: lease for lease in await self.store.list_members()}
        self._listed_s = now = self.clock.monotonic_s()
        if now < self._grace_until_s or self._lost_since_s is not None:
            shards, members = self.shards | shards, self.members | members
        self.shards, self.members = shards, members
        for lease in shards.values():
            self._seen_s[lease.instance_id] = now
            self.ledger.settle(lease)
            if self.mirror.follow(lease.instance_id, lease.incarnation):
                self._cursors[Feed(FeedKind.KV, lease.instance_id)] = ""
        for name in [name for name, seen_s in self._seen_s.items() if now - seen_s > _FORGET_S]:
            self.mirror.forget(name)
            self.ledger.forget(name)
            del self._cursors[Feed(FeedKind.KV, name)], self._seen_s[name]
        self.changed.set()

    async def _read_tables(self) -> None:
        self.endpoints = {held.value.deployment: held.value for held in await self.store.list_endpoints()}
        for held in await self.store.list_expert_tables():
            self.tables[held.value.deployment, held.value.revision_id] = held.value
        self.changed.set()
