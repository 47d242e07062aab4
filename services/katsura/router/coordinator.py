"""The coordinator's hands: hold the fenced lease, and while it is ours write what the pure core decides.

Every replica runs this; one at a time holds the lease. Writes carry the fence and the version they were decided on, so
one that was frozen past its lease, or read an old table, is refused by the store and looks again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from katsura.domain.clock import Clock
from katsura.domain.errors import ConflictError, KatsuraError, TemporaryError
from katsura.domain.ids import DeploymentName, Incarnation, InstanceId
from katsura.domain.leases import MemberLease, ShardLease
from katsura.domain.tables import ExpertTables
from katsura.router.core.coordinate import Watched, decide
from katsura.router.core.endpoints import plan_endpoints
from katsura.router.view import View
from katsura.state.hints import COORDINATOR_TTL_MS, HEARTBEAT_S, Coordination, Fence, HintStore, Versioned
from katsura.telemetry import log, metrics, names

_LOG = log.get(__name__)
_COORDINATES = metrics.gauge(names.ROUTER_COORDINATOR, "1 in the replica that coordinates.")
_ABANDONED_S = 60.0
"""Tables of a revision without shards and members are dropped after this long."""
_GATHER_S = 0.05
"""Changes that arrive together are looked at together."""

Name = tuple[DeploymentName, str]


class Coordinator:
    """One replica's part in coordination; `run` is its loop.

    Args:
        store: where lease and tables are.
        view: leases as followed.
        clock: for waits.
        instance_id: this router; incarnation: its life.
        patience_s: how long a member may load nothing before a table is made without it.
        ttl_ms: how long the lease lives unrefreshed.
    """

    def __init__(
        self,
        store: HintStore,
        view: View,
        clock: Clock,
        instance_id: InstanceId,
        incarnation: Incarnation,
        patience_s: float,
        ttl_ms: int = COORDINATOR_TTL_MS,
    ) -> None:
        self._store = store
        self._view = view
        self._clock = clock
        self._who = (instance_id, incarnation)
        self._patience_s = patience_s
        self._ttl_ms = ttl_ms
        self._watched: dict[Name, Watched] = {}
        self._abandoned_s: dict[Name, float] = {}
        self._said: dict[Name, str] = {}
        self._resigned = False
        self.coordination: Coordination | None = None
        """Who coordinates, as last seen; None while the store cannot be reached."""

    async def run(self) -> None:
        """Hold the lease and write tables until cancelled: at every heartbeat, and when leases or tables change."""
        while True:
            try:
                await self.step()
            except TemporaryError as error:
                if self.coordination is not None:
                    _LOG.warning("cannot coordinate", why=error.message)
                self._forget(None)
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._view.changed.wait()
                    await asyncio.sleep(_GATHER_S)
            except TimeoutError:
                pass
            self._view.changed.clear()

    async def step(self) -> None:
        """Take or refresh the lease; where it is ours, bring every table one step on."""
        if self._resigned:
            return
        found = await self._store.hold_coordinator(*self._who, ttl_ms=self._ttl_ms)
        if self.coordination is None or found.fence != self.coordination.fence:
            _LOG.info("coordinating" if found.mine else "another replica coordinates", holder=found.fence.holder)
            self._forget(found)
        self.coordination = found
        _COORDINATES.set(1 if found.mine else 0)
        if not found.mine:
            return
        try:
            await self._write_endpoints(found.fence)
            await self._write_tables(found.fence)
        except ConflictError as error:
            _LOG.info("a table was not written", why=error.message)

    async def resign(self) -> None:
        """Give the lease back for good (drain): another replica takes over at its next heartbeat."""
        self._resigned = True
        if self.coordination is not None and self.coordination.mine:
            held = self.coordination.fence
            self._forget(None)
            try:
                await self._store.release_coordinator(held)
            except KatsuraError as error:
                _LOG.warning("the lease ends by itself", why=error.message)

    def _forget(self, coordination: Coordination | None) -> None:
        self.coordination = coordination
        self._watched.clear()
        self._abandoned_s.clear()
        _COORDINATES.set(0)

    async def _write_endpoints(self, fence: Fence) -> None:
        held = {table.value.deployment: table for table in await self._store.list_endpoints()}
        shards: dict[DeploymentName, list[ShardLease]] = {name: [] for name in held}
        for lease in self._view.shards.values():
            shards.setdefault(lease.revision.deployment, []).append(lease)
        for name, leases in sorted(shards.items()):
            known = held.get(name)
            wanted = plan_endpoints(name, leases, known.value if known else None)
            if wanted is not None:
                await self._store.write_endpoints(fence, wanted, known.version if known else "")
                _LOG.info("endpoints", deployment=name, epoch=wanted.epoch, shards=len(wanted.shards))

    async def _write_tables(self, fence: Fence) -> None:
        held = {(t.value.deployment, t.value.revision_id): t for t in await self._store.list_expert_tables()}
        members: dict[Name, list[MemberLease]] = defaultdict(list)
        shards: dict[Name, list[ShardLease]] = defaultdict(list)
        for member in self._view.members.values():
            members[member.deployment, member.revision_id].append(member)
        for shard in self._view.shards.values():
            shards[shard.revision.deployment, shard.revision.revision_id].append(shard)
        for name in sorted(held.keys() | members.keys()):
            known = held.get(name) or await self._found_again(fence, name)
            if members[name] or shards[name]:
                self._abandoned_s.pop(name, None)
                await self._advance(fence, name, known, members[name], shards[name])
            else:
                await self._drop_abandoned(fence, name)

    async def _found_again(self, fence: Fence, name: Name) -> Versioned[ExpertTables]:
        """Tables that the store does not list: those that it lost are written again as they were, in their epoch."""
        known = await self._store.read_expert_tables(*name)
        remembered = self._view.tables.get(name)
        if known.version or remembered is None:
            return known
        _LOG.warning("the store lost its expert tables; writing them again", deployment=name[0], revision=name[1])
        return Versioned(remembered, await self._store.write_expert_tables(fence, remembered, ""))

    async def _advance(
        self,
        fence: Fence,
        name: Name,
        known: Versioned[ExpertTables],
        members: list[MemberLease],
        shards: list[ShardLease],
    ) -> None:
        now_s = self._clock.monotonic_s()
        watched = self._watched.get(name, Watched())
        decision = decide(members, shards, known.value, watched, now_s, self._patience_s)
        self._watched[name] = decision.watched
        if decision.tables is not None:
            await self._store.write_expert_tables(fence, decision.tables, known.version)
        if decision.reason != self._said.get(name):
            self._said[name] = decision.reason
            _LOG.info(decision.reason, deployment=name[0], revision=name[1])

    async def _drop_abandoned(self, fence: Fence, name: Name) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._abandoned_s.setdefault(name, now_s) > _ABANDONED_S:
            await self._store.drop_expert_tables(fence, *name)
            self._view.tables.pop(name, None)
            self._watched.pop(name, None)
            self._said.pop(name, None)
