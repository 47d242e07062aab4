"""The hints store on Valkey or Redis: functions/hints.lua behind `katsura.state.hints.HintStore`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from katsura.domain.errors import DataLossError
from katsura.domain.ids import DeploymentName, Incarnation, InstanceId, ProgramId
from katsura.domain.kv_events import KvBatch, KvSnapshot, pack_events, unpack_events, unpack_hashes
from katsura.domain.leases import MemberLease, RouterLease, ShardLease
from katsura.domain.tables import EndpointTable, ExpertTables
from katsura.domain.tenant import Tenant
from katsura.state import keys
from katsura.state.connect import Arg, Library, Store, translated
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
from katsura.state.records import from_json, to_json
from katsura.telemetry import log

_LOG = log.get(__name__)
LIBRARY: Final = Library.read("hints")
_BLOCK_MAX_S: Final = 2.0
"""One blocking read ends well before the connection's own timeout; longer waits are several reads."""

T = TypeVar("T")
L = TypeVar("L", ShardLease, MemberLease, RouterLease)


class RedisHintStore:
    """See `katsura.state.hints.HintStore`.

    Args:
        store: an open connection; this object closes it. `LIBRARY` is loaded on first use if it is not there.
        kv_stream_batches: as KV_STREAM_BATCHES.
    """

    def __init__(self, store: Store, kv_stream_batches: int = KV_STREAM_BATCHES) -> None:
        self._store = store
        self._kv_limit = kv_stream_batches

    async def put_shard(self, lease: ShardLease, ttl_ms: int = LEASE_TTL_MS) -> bool:
        """Put or refresh a lease."""
        return await self._put(Role.SHARD, lease, ttl_ms)

    async def put_member(self, lease: MemberLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease."""
        await self._put(Role.MEMBER, lease, ttl_ms)

    async def put_router(self, lease: RouterLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease."""
        await self._put(Role.ROUTER, lease, ttl_ms)

    async def drop_lease(self, role: Role, instance_id: InstanceId, incarnation: Incarnation) -> None:
        """Give a lease back."""
        await self._call("drop_lease", [*_lease_keys(role), keys.FLEET], [role, instance_id, incarnation])

    async def list_shards(self) -> tuple[ShardLease, ...]:
        """Live shards."""
        return await self._list(Role.SHARD, ShardLease)

    async def list_members(self) -> tuple[MemberLease, ...]:
        """Live members."""
        return await self._list(Role.MEMBER, MemberLease)

    async def list_routers(self) -> tuple[RouterLease, ...]:
        """Live routers."""
        return await self._list(Role.ROUTER, RouterLease)

    async def publish_kv(self, shard_id: InstanceId, batch: KvBatch) -> bool:
        """Append a batch."""
        return await self._tell_kv("publish_kv", shard_id, batch, pack_events(batch.events))

    async def put_kv_snapshot(self, shard_id: InstanceId, snapshot: KvSnapshot) -> None:
        """Replace the snapshot."""
        await self._tell_kv("put_snapshot", shard_id, snapshot, b"".join(snapshot.hashes))

    async def read_kv_snapshot(self, shard_id: InstanceId) -> KvSnapshot | None:
        """The last snapshot."""
        with translated(self._store.url):
            found = await _answer(self._store.client.hmget(keys.kv_snapshot(shard_id).decode(), ["i", "s", "h"]))
        if None in found:
            return None
        return KvSnapshot(Incarnation(int(found[0])), int(found[1]), unpack_hashes(found[2]))

    async def read_feeds(self, cursors: Mapping[Feed, str], timeout_s: float, limit: int = 512) -> Sequence[FeedEntry]:
        """Entries after the cursors."""
        feeds = {_feed_key(feed): feed for feed in cursors}
        after = {key: cursors[feed] or "0" for key, feed in feeds.items()}

        async def read(block_s: float) -> list[FeedEntry]:
            found = await self._read_streams(after, block_s, limit)
            return [
                FeedEntry(feeds[key], at.decode(), _note(feeds[key].kind, at, fields))
                for key, entries in found
                for at, fields in entries
            ]

        return await _within(timeout_s, read, bool)

    async def get_affinity(self, tenant: Tenant, program: ProgramId) -> Affinity | None:
        """Where a program ran last."""
        with translated(self._store.url):
            found = await self._store.client.get(keys.program_affinity(tenant.salt, program))
        try:
            return None if found is None else from_json(Affinity, found)
        except DataLossError:  # of another version: a program that is believed homeless costs a recomputation
            return None

    async def put_affinity(
        self, tenant: Tenant, program: ProgramId, affinity: Affinity, ttl_ms: int = AFFINITY_TTL_MS
    ) -> None:
        """Remember where a program runs."""
        with translated(self._store.url):
            await self._store.client.set(keys.program_affinity(tenant.salt, program), to_json(affinity), px=ttl_ms)

    async def drop_affinity(self, tenant: Tenant, program: ProgramId, shard_id: InstanceId) -> None:
        """Forget it, if it still names `shard_id`."""
        await self._call("drop_affinity", [keys.program_affinity(tenant.salt, program)], [shard_id])

    async def note_decision(self, note: Decided | Finished) -> None:
        """Append to the ledger."""
        fields: dict[Any, Any] = {"f": note.decision_id}
        if isinstance(note, Decided):
            fields = {"d": note.decision_id, "s": note.shard_id, "i": note.incarnation, "p": note.prefill_tokens}
        with translated(self._store.url):
            await self._store.client.xadd(keys.DECISIONS, fields, maxlen=DECISION_NOTES, approximate=True)

    async def hold_coordinator(
        self, holder: InstanceId, incarnation: Incarnation, ttl_ms: int = COORDINATOR_TTL_MS
    ) -> Coordination:
        """Take, refresh or read the coordinator lease."""
        names = [keys.COORDINATOR, keys.COORDINATOR_TOKENS]
        found = (await self._call("hold", names, [incarnation, holder, ttl_ms])).decode()
        token, life, name = found.split(" ", 2)
        fence = Fence(InstanceId(name), Incarnation(int(life)), int(token))
        return Coordination(fence, (fence.holder, fence.incarnation) == (holder, incarnation))

    async def release_coordinator(self, fence: Fence) -> None:
        """Give the lease back."""
        await self._call("release", [keys.COORDINATOR], [_fence_text(fence)])

    async def write_expert_tables(self, fence: Fence, tables: ExpertTables, expected_version: str) -> str:
        """Replace the tables of a revision."""
        key = keys.expert_tables(tables.deployment, tables.revision_id)
        name = f"{tables.deployment} {tables.revision_id}"
        record = to_json(tables)
        return await self._write(fence, key, keys.EXPERT_TABLE_NAMES, name, tables.deployment, record, expected_version)

    async def drop_expert_tables(self, fence: Fence, deployment: DeploymentName, revision_id: str) -> None:
        """Forget the tables of a revision."""
        names = [
            keys.COORDINATOR,
            keys.expert_tables(deployment, revision_id),
            keys.EXPERT_TABLE_NAMES,
            keys.FLEET,
        ]
        empty = to_json(ExpertTables(deployment, revision_id))
        args = [_fence_text(fence), empty, f"{deployment} {revision_id}", deployment]
        if (await self._call("drop_table", names, args))[0] != b"OK":
            raise fence_lost(fence)

    async def read_expert_tables(self, deployment: DeploymentName, revision_id: str) -> Versioned[ExpertTables]:
        """The tables."""
        found = await self._latest([keys.expert_tables(deployment, revision_id)], ExpertTables)
        return found[0] if found else Versioned(ExpertTables(deployment, revision_id), "")

    async def wait_expert_tables(
        self, deployment: DeploymentName, revision_id: str, after_version: str, timeout_s: float
    ) -> Versioned[ExpertTables]:
        """The tables as soon as their version is another one."""
        key = keys.expert_tables(deployment, revision_id)

        async def read(block_s: float) -> Versioned[ExpertTables]:
            held = await self.read_expert_tables(deployment, revision_id)
            if held.version in ("", after_version):
                await self._read_streams({key: after_version or "0"}, block_s, 1)
                held = await self.read_expert_tables(deployment, revision_id)
            return held if held.version else replace(held, version=after_version)

        return await _within(timeout_s, read, lambda held: held.version != after_version)

    async def list_expert_tables(self) -> tuple[Versioned[ExpertTables], ...]:
        """All tables."""
        names = [name.split(" ") for name in await self._names(keys.EXPERT_TABLE_NAMES)]
        return await self._latest([keys.expert_tables(*name) for name in names], ExpertTables)

    async def write_endpoints(self, fence: Fence, table: EndpointTable, expected_version: str) -> str:
        """Replace a deployment's endpoint table."""
        name = table.deployment
        key = keys.endpoints(name)
        return await self._write(fence, key, keys.ENDPOINT_NAMES, name, name, to_json(table), expected_version)

    async def list_endpoints(self) -> tuple[Versioned[EndpointTable], ...]:
        """All endpoint tables."""
        names = await self._names(keys.ENDPOINT_NAMES)
        return await self._latest([keys.endpoints(name) for name in names], EndpointTable)

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()

    async def _call(self, function: str, names: Sequence[bytes], args: Sequence[Arg]) -> Any:
        return await self._store.call(LIBRARY, function, names, args)

    async def _put(self, role: Role, lease: ShardLease | MemberLease | RouterLease, ttl_ms: int) -> bool:
        name = lease.instance_id
        names = [*_lease_keys(role), keys.FLEET, keys.kv_events(name), keys.kv_snapshot(name)]
        args: list[Arg] = [role, name, lease.incarnation, lease.start_ms, ttl_ms, to_json(lease)]
        return _wanted(await self._call("put_lease", names, args), name)

    async def _list(self, role: Role, kind: type[L]) -> tuple[L, ...]:
        leases = []
        for found in await self._call("list_leases", _lease_keys(role), []):
            put_ms, _, record = found.partition(b"\n")
            try:
                leases.append(replace(from_json(kind, record), put_ms=int(put_ms)))
            except DataLossError as error:  # one broken record must not hide the others
                _LOG.warning("a lease is skipped", why=error.message)
        return tuple(sorted(leases, key=lambda lease: lease.instance_id))

    async def _tell_kv(self, function: str, shard_id: InstanceId, told: KvBatch | KvSnapshot, body: bytes) -> bool:
        _, lives, expiry = _lease_keys(Role.SHARD)
        names = [lives, expiry, keys.kv_events(shard_id), keys.kv_snapshot(shard_id)]
        args: list[Arg] = [shard_id, told.incarnation, told.sequence, body, self._kv_limit]
        return _wanted(await self._call(function, names, args), shard_id)

    async def _read_streams(self, after: Mapping[bytes, str], block_s: float, limit: int) -> Any:
        block_ms = max(1, int(block_s * 1000))
        streams: dict[Any, Any] = dict(after)
        with translated(self._store.url):
            return await self._store.client.xread(streams, count=limit, block=block_ms) or []

    async def _write(
        self, fence: Fence, key: bytes, index: bytes, name: str, deployment: str, record: str, expected_version: str
    ) -> str:
        args = [_fence_text(fence), expected_version, record, name, deployment]
        answer = await self._call("write_table", [keys.COORDINATOR, key, index, keys.FLEET], args)
        if answer[0] == b"LEASE_LOST":
            raise fence_lost(fence)
        if answer[0] == b"STALE_EPOCH":
            raise table_moved()
        version: bytes = answer[1]
        return version.decode()

    async def _names(self, index: bytes) -> list[str]:
        with translated(self._store.url):
            found = await _answer(self._store.client.smembers(index.decode()))
        return sorted(name.decode() for name in found)

    async def _latest(self, names: Sequence[bytes], kind: type[T]) -> tuple[Versioned[T], ...]:
        pipeline = self._store.client.pipeline(transaction=False)
        for name in names:
            pipeline.xrevrange(name, count=1)
        with translated(self._store.url):
            found = await pipeline.execute() if names else []
        tables = []
        for ((version, fields),) in filter(None, found):
            try:
                tables.append(Versioned(from_json(kind, fields[b"t"]), version.decode()))
            except DataLossError as error:
                _LOG.warning("a table is skipped", why=error.message)
        return tuple(tables)


async def _within(timeout_s: float, read: Callable[[float], Awaitable[T]], done: Callable[[T], bool]) -> T:
    """What `read(seconds it may block)` answers once `done` holds or `timeout_s` has passed."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while True:
        left = end - loop.time()
        found = await read(min(max(left, 0.0), _BLOCK_MAX_S))
        if done(found) or left <= _BLOCK_MAX_S:
            return found


async def _answer(found: Any) -> Any:
    """The client's stubs call every command both synchronous and asynchronous; ours are asynchronous."""
    return await found


def _lease_keys(role: Role) -> list[bytes]:
    return [keys.lease_records(role), keys.lease_lives(role), keys.lease_expiry(role)]


def _feed_key(feed: Feed) -> bytes:
    if feed.kind is FeedKind.KV:
        return keys.kv_events(feed.name)
    return keys.FLEET if feed.kind is FeedKind.FLEET else keys.DECISIONS


def _note(kind: FeedKind, at: bytes, fields: Mapping[bytes, bytes]) -> Note | None:
    """The note of an entry, or None where another version of us wrote something that this one cannot read."""
    try:
        match kind:
            case FeedKind.KV:
                incarnation, sequence = Incarnation(int(fields[b"i"])), int(fields[b"s"])
                if b"e" not in fields:
                    return SnapshotNotice(incarnation, sequence)
                return KvBatch(incarnation, sequence, unpack_events(fields[b"e"]))
            case FeedKind.FLEET:
                if fields[b"k"] == b"table":
                    return TableNotice(DeploymentName(fields[b"a"].decode()))
                return LeaseNotice(Role(fields[b"a"].decode()), InstanceId(fields[b"b"].decode()))
            case FeedKind.DECISIONS:
                if b"f" in fields:
                    return Finished(fields[b"f"].decode())
                shard_id, life = InstanceId(fields[b"s"].decode()), Incarnation(int(fields[b"i"]))
                at_ms = int(at.partition(b"-")[0])
                return Decided(fields[b"d"].decode(), shard_id, life, int(fields[b"p"]), at_ms)
    except (KeyError, ValueError, DataLossError):
        return None


def _wanted(answer: Any, instance_id: InstanceId) -> bool:
    if answer == b"LEASE_LOST":
        raise lease_lost(instance_id)
    return bool(answer)


def _fence_text(fence: Fence) -> str:
    return f"{fence.token} {fence.incarnation} {fence.holder}"
