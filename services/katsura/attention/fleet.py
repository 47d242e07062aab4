"""What a shard tells the fleet and hears from it: its lease, its KV events, and the expert table it follows.

All of it is a hint: when the store is away the shard goes on serving with its last table, and tells everything again
when the store is back.
"""

from __future__ import annotations

import asyncio
from collections import deque

from katsura.attention import messages
from katsura.attention.messages import Report
from katsura.attention.shard import Shard
from katsura.domain.errors import ConflictError, TemporaryError
from katsura.domain.ids import Epoch, InstanceId
from katsura.domain.kv_events import KvBatch, KvSnapshot, unpack_events
from katsura.domain.leases import ShardLease, ShardLoad
from katsura.state.hints import HEARTBEAT_S, HintStore, Role
from katsura.telemetry import log

_LOG = log.get(__name__)
BATCHES_MAX = 4096
"""KV batches that wait for a store that is away; beyond it the mirrors take a snapshot."""
TABLE_WAIT_S = 5.0
RETRY_S = 0.5


class Fleet:
    """The hints store, as one shard uses it."""

    def __init__(self, shard: Shard, store: HintStore, address: str, follows_tables: bool) -> None:
        self._shard, self._store, self._address = shard, store, address
        self._follows_tables = follows_tables
        self._id = InstanceId(shard.config.serve.instance_id)
        self._ready, self._why = False, "starting"
        self._batches: deque[KvBatch] = deque()
        self._snapshot: KvSnapshot | None = None
        self._wanted = asyncio.Event()  # something is to be published
        self._beat = asyncio.Event()  # the lease changed
        shard.on_report.append(self._note)

    def set_ready(self, ready: bool, why: str) -> None:
        """Say in the lease whether new sequences are taken."""
        self._ready, self._why = ready, why
        self._beat.set()

    async def heartbeat(self) -> None:
        """Refresh the lease for ever. Raises ConflictError when a later life of this shard holds it."""
        while True:
            self._beat.clear()
            try:
                if await self._store.put_shard(self._lease()):
                    await self._shard.tell(messages.Snapshot())
            except ConflictError:
                raise
            except TemporaryError as error:
                _LOG.warning("the lease was not refreshed", why=error.message)
            try:
                await asyncio.wait_for(self._beat.wait(), HEARTBEAT_S)
            except TimeoutError:
                continue

    async def publish(self) -> None:
        """Publish KV events and snapshots for ever, in order."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._publish_all()
            except ConflictError:
                raise
            except TemporaryError as error:
                _LOG.warning("KV events wait for the store", why=error.message, batches=len(self._batches))
                await asyncio.sleep(RETRY_S)
                self._wanted.set()

    async def follow_tables(self) -> None:
        """Hand every committed expert table to the compute process, for ever."""
        version, revision = "", self._shard.revision
        while self._follows_tables:
            try:
                found = await self._store.wait_expert_tables(
                    revision.deployment, revision.revision_id, version, TABLE_WAIT_S
                )
            except TemporaryError as error:
                _LOG.warning("the expert table is not followed; going on with the last one", why=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            if found.version != version:
                version = found.version
                await self._shard.tell(messages.Tables(found.value.committed))

    async def leave(self) -> None:
        """Give the lease back at a clean end."""
        try:
            await self._store.drop_lease(Role.SHARD, self._id, self._shard.incarnation)
        except TemporaryError as error:
            _LOG.warning("the lease could not be given back; it will run out", why=error.message)

    async def _publish_all(self) -> None:
        while self._snapshot is not None or self._batches:
            if self._snapshot is not None:
                await self._store.put_kv_snapshot(self._id, self._snapshot)
                self._snapshot = None
                continue
            if await self._store.publish_kv(self._id, self._batches[0]):
                await self._shard.tell(messages.Snapshot())
            self._batches.popleft()

    def _note(self, report: Report) -> None:
        incarnation = self._shard.incarnation
        if report.batch is not None:
            sequence, events = report.batch
            self._batches.append(KvBatch(incarnation, sequence, unpack_events(events)))
            if len(self._batches) > BATCHES_MAX:
                self._batches.popleft()
        if report.snapshot is not None:
            self._snapshot = KvSnapshot(incarnation, *report.snapshot)
        if report.batch is not None or report.snapshot is not None:
            self._wanted.set()

    def _lease(self) -> ShardLease:
        shard, load = self._shard, self._shard.state.load
        pool, rates = shard.state.pool, shard.state.rates
        return ShardLease(
            instance_id=self._id,
            incarnation=shard.incarnation,
            start_ms=shard.start_ms,
            revision=shard.revision,
            aliases=shard.config.aliases,
            model_path=str(shard.config.model_path),
            address=self._address,
            ready=self._ready,
            not_ready_reason="" if self._ready else self._why,
            load=ShardLoad(
                running=load.running_count,
                waiting=load.waiting_count,
                waiting_tokens=load.waiting_tokens,
                free_pages=load.free_page_count,
                page_count=load.page_count,
                step_ms=rates.step_ms,
                prefill_tokens_per_s=rates.prefill_tokens_per_s,
            ),
            epoch=Epoch(0 if pool is None else pool.epoch),
            draining=shard.draining,
        )
