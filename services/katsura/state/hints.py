"""The hints store: who is running, where KV pages lie, who coordinates, and the tables that the data plane follows.

Called by shards and members (leases, KV events, table watches), by the router (everything) and by `katsura status`.
All of it can be rebuilt by the processes that wrote it: the store may be capped, evict, or come back empty, and within
a heartbeat the leases are there again, within two the snapshots and the tables. `TwinHintStore` (hints_twin.py) keeps
it in memory, `RedisHintStore` (hints_redis.py) in Valkey or Redis; one contract suite covers both.

Records are `katsura.domain.leases`, `.tables` and `.kv_events`. Every method raises UnavailableError
(STORE_UNAVAILABLE) when the store cannot be reached; the others are named at the method. How to be found:

    shard    put_shard each HEARTBEAT_S; publish_kv after each step that changed pages. Where either answers True, call
             put_kv_snapshot: a reader could not rebuild the mirror otherwise. wait_expert_tables in a loop: turn to
             `committed` between two steps.
    member   put_member each HEARTBEAT_S. wait_expert_tables in a loop: load what `prepared` gives this life, then put
             prepared_epoch; at `committed` put serving_epoch and free what neither table names.
    router   put_router each HEARTBEAT_S; read_feeds in a loop; hold_coordinator each HEARTBEAT_S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from katsura.domain.errors import ConflictError, Reason
from katsura.domain.ids import DeploymentName, Incarnation, InstanceId, ProgramId
from katsura.domain.kv_events import KvBatch, KvSnapshot
from katsura.domain.leases import MemberLease, RouterLease, ShardLease
from katsura.domain.tables import EndpointTable, ExpertTables
from katsura.domain.tenant import Tenant

HEARTBEAT_S = 1.0
"""How often a lease is refreshed."""
LEASE_TTL_MS = 4000
"""How long a lease lives unrefreshed: three heartbeats may be lost."""
COORDINATOR_TTL_MS = 3000
"""How long the coordinator may be silent before another replica takes over."""
AFFINITY_TTL_MS = 30 * 60 * 1000
"""How long a program's shard is remembered."""
KV_STREAM_BATCHES = 4096
"""Batches kept per shard; a reader further behind takes the snapshot."""
DECISION_NOTES = 8192
"""Routing decisions kept for the shared ledger of load in flight."""

T = TypeVar("T")


class Role(StrEnum):
    """Who leases."""

    SHARD = "shard"
    MEMBER = "member"
    ROUTER = "router"


@dataclass(frozen=True, slots=True)
class Versioned(Generic[T]):
    """A value and its opaque version, "" for one that was never written; compare versions for equality only."""

    value: T
    version: str


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of being coordinator: a write carries it, and is refused once another holder or a later lease exists."""

    holder: InstanceId
    incarnation: Incarnation
    token: int


@dataclass(frozen=True, slots=True)
class Coordination:
    """Who coordinates; `mine` when the asker does."""

    fence: Fence
    mine: bool


@dataclass(frozen=True, slots=True)
class Affinity:
    """Where a program ran last."""

    deployment: DeploymentName
    shard_id: InstanceId
    incarnation: Incarnation


class FeedKind(StrEnum):
    """What can be followed."""

    FLEET = "fleet"
    KV = "kv"
    DECISIONS = "decisions"


@dataclass(frozen=True, slots=True)
class Feed:
    """A log to follow; `name` is the shard of a KV feed and empty otherwise."""

    kind: FeedKind
    name: str = ""


@dataclass(frozen=True, slots=True)
class LeaseNotice:
    """A lease was put or dropped; list that role again."""

    role: Role
    instance_id: InstanceId


@dataclass(frozen=True, slots=True)
class TableNotice:
    """A table of a deployment was written; read it again."""

    deployment: DeploymentName


@dataclass(frozen=True, slots=True)
class SnapshotNotice:
    """The shard published a snapshot taken after batch `sequence`."""

    incarnation: Incarnation
    sequence: int


@dataclass(frozen=True, slots=True)
class Decided:
    """A router sent a request of `prefill_tokens` uncached tokens to a shard; `at_ms` is set by the store."""

    decision_id: str
    shard_id: InstanceId
    incarnation: Incarnation
    prefill_tokens: int
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The request of a decision ended."""

    decision_id: str


Note = LeaseNotice | TableNotice | KvBatch | SnapshotNotice | Decided | Finished


@dataclass(frozen=True, slots=True)
class FeedEntry:
    """One entry of a feed; read on from `cursor`. `note` is None where this version cannot read the entry."""

    feed: Feed
    cursor: str
    note: Note | None


class HintStore(Protocol):
    """See the module. Times are the store's clock; TTLs in milliseconds, waits in seconds."""

    async def put_shard(self, lease: ShardLease, ttl_ms: int = LEASE_TTL_MS) -> bool:
        """Put or refresh a lease; True asks for a KV snapshot: there is none of this life (so also once at start).

        Raises ConflictError (LEASE_LOST) where a later life of the same instance holds the lease: stop serving.
        """
        ...

    async def put_member(self, lease: MemberLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease. Raises ConflictError (LEASE_LOST) as `put_shard`."""
        ...

    async def put_router(self, lease: RouterLease, ttl_ms: int = LEASE_TTL_MS) -> None:
        """Put or refresh a lease. Raises ConflictError (LEASE_LOST) as `put_shard`."""
        ...

    async def drop_lease(self, role: Role, instance_id: InstanceId, incarnation: Incarnation) -> None:
        """Give a lease back at a clean end; that of another life, or none, is left alone."""
        ...

    async def list_shards(self) -> tuple[ShardLease, ...]:
        """Live shards, by instance id."""
        ...

    async def list_members(self) -> tuple[MemberLease, ...]:
        """Live members, by instance id."""
        ...

    async def list_routers(self) -> tuple[RouterLease, ...]:
        """Live routers, by instance id."""
        ...

    async def publish_kv(self, shard_id: InstanceId, batch: KvBatch) -> bool:
        """Append a batch; True asks for a snapshot: none of this life, a hole after it, or half a log since it.

        A shard that could not publish keeps the batch and publishes it later, or counts it and puts a snapshot.

        A batch published again after a lost answer is ignored by readers. Raises ConflictError (LEASE_LOST) where a
        later life of the shard holds its lease.
        """
        ...

    async def put_kv_snapshot(self, shard_id: InstanceId, snapshot: KvSnapshot) -> None:
        """Replace the snapshot; readers that miss a batch take it. Raises ConflictError (LEASE_LOST) as above."""
        ...

    async def read_kv_snapshot(self, shard_id: InstanceId) -> KvSnapshot | None:
        """The last snapshot."""
        ...

    async def read_feeds(self, cursors: Mapping[Feed, str], timeout_s: float, limit: int = 512) -> Sequence[FeedEntry]:
        """Entries after the cursors ("" reads from the oldest kept), oldest first within each feed.

        Blocks up to `timeout_s` for the first one, then answers at once with at most `limit` of each feed.
        """
        ...

    async def get_affinity(self, tenant: Tenant, program: ProgramId) -> Affinity | None:
        """Where a program ran last; expired or unknown is None."""
        ...

    async def put_affinity(
        self, tenant: Tenant, program: ProgramId, affinity: Affinity, ttl_ms: int = AFFINITY_TTL_MS
    ) -> None:
        """Remember where a program runs."""
        ...

    async def drop_affinity(self, tenant: Tenant, program: ProgramId, shard_id: InstanceId) -> None:
        """Forget it, if it still names `shard_id`."""
        ...

    async def note_decision(self, note: Decided | Finished) -> None:
        """Append to the ledger of load in flight that all routers follow."""
        ...

    async def hold_coordinator(
        self, holder: InstanceId, incarnation: Incarnation, ttl_ms: int = COORDINATOR_TTL_MS
    ) -> Coordination:
        """Take the coordinator lease if it is free, refresh it if it is ours, and say who holds it.

        The token grows with every lease taken. A holder that lapsed and came back has a new one.
        """
        ...

    async def release_coordinator(self, fence: Fence) -> None:
        """Give the lease back at once; a stale fence does nothing."""
        ...

    async def write_expert_tables(self, fence: Fence, tables: ExpertTables, expected_version: str) -> str:
        """Replace the tables of a (deployment, revision) where their version is as expected; the new version.

        Raises ConflictError: LEASE_LOST for a fence that is not the current one, STALE_EPOCH for another version.
        """
        ...

    async def drop_expert_tables(self, fence: Fence, deployment: DeploymentName, revision_id: str) -> None:
        """Forget the tables of a revision that nobody serves: readers see neither phase, under a new version.

        Raises ConflictError (LEASE_LOST) for a stale fence.
        """
        ...

    async def read_expert_tables(self, deployment: DeploymentName, revision_id: str) -> Versioned[ExpertTables]:
        """The tables; both phases are None where nothing was written."""
        ...

    async def wait_expert_tables(
        self, deployment: DeploymentName, revision_id: str, after_version: str, timeout_s: float
    ) -> Versioned[ExpertTables]:
        """The tables as soon as their version is not `after_version`, or as they are after `timeout_s`. Blocks.

        Tables that a store lost count as unchanged: keep what you have, the coordinator writes them again. So a version
        that was seen is never followed by "".
        """
        ...

    async def list_expert_tables(self) -> tuple[Versioned[ExpertTables], ...]:
        """The tables of every (deployment, revision), by these names."""
        ...

    async def write_endpoints(self, fence: Fence, table: EndpointTable, expected_version: str) -> str:
        """Replace a deployment's endpoint table, as `write_expert_tables`."""
        ...

    async def list_endpoints(self) -> tuple[Versioned[EndpointTable], ...]:
        """The endpoint table of every deployment, by name."""
        ...

    async def close(self) -> None:
        """Let go of connections; calls that wait end with UnavailableError."""
        ...


def lease_lost(instance_id: InstanceId) -> ConflictError:
    """What an earlier life of an instance is told."""
    return ConflictError(
        f"another life of {instance_id} holds its lease; this process must stop",
        reason=Reason.LEASE_LOST,
        metadata={"instance_id": instance_id},
    )


def fence_lost(fence: Fence) -> ConflictError:
    """What a coordinator of the past is told."""
    return ConflictError(
        f"{fence.holder} no longer coordinates with token {fence.token}; read who does before writing again",
        reason=Reason.LEASE_LOST,
    )


def table_moved() -> ConflictError:
    """What a writer that read an older version is told."""
    return ConflictError("the table was written meanwhile; read it and decide again", reason=Reason.STALE_EPOCH)
