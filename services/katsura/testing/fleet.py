"""Shards and members that exist only as their records in the hints store, for tests of whoever reads those."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from katsura.domain.errors import TemporaryError
from katsura.domain.ids import DeploymentName, Incarnation, InstanceId
from katsura.domain.leases import MemberLease, Revision, ShardLease, ShardLoad
from katsura.domain.shape import DType, FfnLayout, Numerics
from katsura.domain.tables import ExpertTable, ExpertTables
from katsura.state.hints import HintStore, Versioned

DEPLOYMENT = DeploymentName("demo")
REVISION = Revision(DEPLOYMENT, "rev-1", bytes(32), Numerics.INVARIANT, DType.F32, 16, 2048, "t0")
GROUPS, LAYERS, GROUP_BYTES = 8, 3, 1000
ALL_GROUPS_BYTES = GROUPS * LAYERS * GROUP_BYTES
LONG_TTL_MS = 600_000


def shard_record(name: str, incarnation: int = 1, start_ms: int = 1000) -> ShardLease:
    """A ready shard of REVISION with nothing to do; change it with `dataclasses.replace`."""
    load = ShardLoad(free_pages=1000, page_count=1000, step_ms=10.0, prefill_tokens_per_s=1000.0)
    return ShardLease(
        instance_id=InstanceId(name),
        incarnation=Incarnation(incarnation),
        start_ms=start_ms,
        revision=REVISION,
        aliases=("tiny",),
        model_path="models/demo",
        address=f"unix:/run/{name}",
        ready=True,
        load=load,
    )


def member_record(name: str, incarnation: int = 1, start_ms: int = 1000) -> MemberLease:
    """An empty member with room for every group of REVISION; change it with `dataclasses.replace`."""
    return MemberLease(
        instance_id=InstanceId(name),
        incarnation=Incarnation(incarnation),
        start_ms=start_ms,
        deployment=DEPLOYMENT,
        revision_id=REVISION.revision_id,
        numerics=REVISION.numerics,
        layer_count=LAYERS,
        layout=FfnLayout(GROUPS, GROUPS),
        group_bytes=GROUP_BYTES,
        address=f"unix:/run/{name}",
        data_endpoints=(f"shm:/run/{name}.sock",),
        capacity_bytes=ALL_GROUPS_BYTES,
        fingerprint="f0",
    )


class RecordedMember:
    """A member that loads at once whatever a table gives it, by writing so into its record."""

    def __init__(self, store: HintStore, lease: MemberLease) -> None:
        self._store = store
        self.lease = lease

    async def run(self) -> None:
        """Follow the tables and refresh the lease until cancelled."""
        version = ""
        while True:
            try:
                await self._store.put_member(self.lease)
                found = await self._wait(version)
                version = found.version
                await self._follow(found.value)
            except TemporaryError:
                await asyncio.sleep(0.1)

    async def _wait(self, version: str) -> Versioned[ExpertTables]:
        lease = self.lease
        return await self._store.wait_expert_tables(lease.deployment, lease.revision_id, version, 1.0)

    async def _follow(self, tables: ExpertTables) -> None:
        held = self._given(tables.committed), self._given(tables.prepared)
        if held[0] is not None:
            self.lease = replace(self.lease, serving_epoch=held[0].epoch)
        newest = held[1] or held[0]
        mine = newest.of(self.lease.instance_id, self.lease.incarnation) if newest else None
        if newest is not None and mine is not None:
            loaded = (*mine.primary, *mine.alternate)
            size = sum(len(r.groups) * (r.layer_end - r.layer_start) for r in loaded) * self.lease.group_bytes
            self.lease = replace(self.lease, loaded=loaded, loaded_bytes=size, prepared_epoch=newest.epoch)

    def _given(self, table: ExpertTable | None) -> ExpertTable | None:
        return table if table and table.of(self.lease.instance_id, self.lease.incarnation) else None
