"""The RPC half over a real pipe and the twin store; the test plays the compute half and the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

import pytest

from katsura.domain.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange, MemberLease
from katsura.domain.shape import FfnLayout
from katsura.domain.tables import Assignment, ExpertTable, ExpertTables
from katsura.experts import messages
from katsura.experts.config import MemberConfig
from katsura.experts.core.residency import keys_of
from katsura.experts.service import MemberService, begin
from katsura.state.hints_twin import TwinHintStore
from katsura.wire.pipe import AsyncPipe

LAYOUT, LIFE = FfnLayout(4, 4), Incarnation(7)
HELLO = messages.Hello(b"w" * 32, "ab", 2, LAYOUT, 100, 1e-5, 1e-7, 10_000, ("shm:/x",))
ENV = {
    "KATSURA_INTERNAL_TOKEN": "t", "KATSURA_DEPLOYMENT": "d", "KATSURA_MODEL_PATH": "/m", "KATSURA_INSTANCE_ID": "me",
}  # fmt: skip
Command = messages.Load | messages.Fuse | messages.Free | messages.Probe | messages.Drain


class WallClock:
    def wall_ms(self) -> int:
        return 1000

    def monotonic_s(self) -> float:
        return 1.0


@dataclass
class House:
    member: MemberService
    compute: AsyncPipe
    store: TwinHintStore
    epoch: int = 0

    async def heard(self) -> messages.Message:
        return messages.read(await asyncio.wait_for(self.compute.receive(), 10))

    async def say(self, message: messages.Message) -> None:
        await self.compute.send(messages.write(message))

    async def obey(self, kind: type[Command], *loaded: int) -> Command:
        """Take the next command, which must be of `kind`, and report that these groups of both layers are loaded."""
        command = await self.heard()
        assert isinstance(command, kind)
        await self.say(messages.Done(command.call, over(*loaded), 100 * len(loaded)))
        return command  # type: ignore[return-value]

    async def write(self, *, committed: tuple[int, ...] = (), prepared: tuple[int, ...] = ()) -> None:
        def table(groups: tuple[int, ...]) -> ExpertTable | None:
            if not groups:
                return None
            self.epoch += 1
            mine = Assignment(InstanceId("me"), LIFE, 0, (), "ab", over(*groups))
            return ExpertTable(DeploymentName("d"), self.member.revision_id, Epoch(self.epoch), 2, LAYOUT, (mine,))

        fence = (await self.store.hold_coordinator(InstanceId("c"), Incarnation(1))).fence
        found = await self.store.read_expert_tables(DeploymentName("d"), self.member.revision_id)
        tables = ExpertTables(DeploymentName("d"), self.member.revision_id, table(committed), table(prepared))
        await self.store.write_expert_tables(fence, tables, found.version)

    async def commit(self) -> None:
        fence = (await self.store.hold_coordinator(InstanceId("c"), Incarnation(1))).fence
        found = await self.store.read_expert_tables(DeploymentName("d"), self.member.revision_id)
        tables = replace(found.value, committed=found.value.prepared, prepared=None)
        await self.store.write_expert_tables(fence, tables, found.version)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while True:
                if holds():
                    return
                await asyncio.sleep(0)

    async def lease(self, prepared: int, serving: int, draining: bool = False) -> MemberLease:
        """Wait until the lease says so."""
        async with asyncio.timeout(60):
            while True:
                for lease in await self.store.list_members():
                    if (lease.prepared_epoch, lease.serving_epoch, lease.draining) == (prepared, serving, draining):
                        return lease
                await asyncio.sleep(0)


def over(*groups: int) -> tuple[GroupRange, ...]:
    return (GroupRange(0, 2, groups),) if groups else ()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    ours, theirs = socket.socketpair()
    pipe, compute = await AsyncPipe.open(ours), await AsyncPipe.open(theirs)
    store = TwinHintStore(WallClock())
    member = MemberService(MemberConfig.from_env(ENV), pipe, HELLO, LIFE, store)
    works = (member.listen, member.follow_tables, member.reconcile, member.heartbeat)
    tasks = [asyncio.create_task(work()) for work in works]
    yield House(member, compute, store)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, UnavailableError):
            await task
    await pipe.close()
    await compute.close()
    await store.close()


async def test_a_member_starts_empty_and_says_what_it_can_hold(house: House) -> None:
    lease = await house.lease(0, 0)
    assert (lease.loaded, lease.capacity_bytes, lease.group_bytes, lease.fingerprint) == ((), 10_000, 100, "ab")


async def test_a_table_is_loaded_and_fused_before_it_is_acknowledged_and_served_when_committed(house: House) -> None:
    await house.write(prepared=(0, 1))
    command = await house.heard()
    assert isinstance(command, messages.Load)
    assert keys_of(command.groups) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert house.member.prepared_epoch == 0
    await house.say(messages.Done(command.call, over(0, 1), 400))
    fuse = await house.obey(messages.Fuse, 0, 1)
    assert isinstance(fuse, messages.Fuse)
    assert fuse.groups == over(0, 1)
    assert (await house.lease(1, 0)).loaded_bytes == 400
    await house.commit()
    assert await house.heard() == messages.Serve(1)
    await house.lease(1, 1)


async def test_what_the_next_table_no_longer_names_is_freed_after_its_commit_only(house: House) -> None:
    await house.write(committed=(0,))
    await house.obey(messages.Load, 0)
    await house.obey(messages.Fuse, 0)
    assert await house.heard() == messages.Serve(1)
    await house.write(committed=(0,), prepared=(1,))
    assert await house.heard() == messages.Serve(2)
    await house.obey(messages.Load, 0, 1)
    await house.obey(messages.Fuse, 0, 1)
    await house.lease(3, 2)
    await house.commit()
    assert await house.heard() == messages.Serve(3)
    free = await house.obey(messages.Free, 1)
    assert isinstance(free, messages.Free)
    assert (free.groups, free.epoch) == (over(0), 3)


async def test_a_table_that_does_not_fit_is_not_acknowledged_and_the_old_one_is_served_on(house: House) -> None:
    await house.write(committed=(0,))
    await house.obey(messages.Load, 0)
    await house.obey(messages.Fuse, 0)
    assert await house.heard() == messages.Serve(1)
    await house.write(committed=(0,), prepared=(1,))
    assert await house.heard() == messages.Serve(2)
    command = await house.heard()
    assert isinstance(command, messages.Load)
    await house.say(messages.Failed.of(command.call, ResourceExhaustedError("too much")))
    assert (await house.lease(2, 2)).loaded == over(0)


async def test_a_long_load_is_cut_so_that_the_lease_shows_progress(house: House) -> None:
    await house.write(prepared=(0, 1, 2, 3))
    await house.write(prepared=(0, 1, 2, 3))
    first = await house.heard()
    assert isinstance(first, messages.Load)
    assert len(keys_of(first.groups)) == 8


async def test_load_and_unload_by_call_and_what_a_table_names_stays(house: House) -> None:
    loading = asyncio.create_task(house.member.load(over(2)))
    await house.obey(messages.Load, 2)
    await loading
    freeing = asyncio.create_task(house.member.unload(over(2)))
    await house.obey(messages.Free)
    await freeing
    assert house.member.loaded == frozenset()
    await house.write(committed=(3,))
    await house.obey(messages.Load, 3)
    with pytest.raises(FailedPreconditionError, match="drain the member instead"):
        await house.member.unload(over(3))


async def test_draining_waits_for_shards_to_leave_and_then_refuses(house: House) -> None:
    await house.say(messages.Report(clients=1, frames=3, seconds=0.5))
    await house.until(lambda: house.member.clients == 1)
    draining = asyncio.create_task(house.member.drain(0))
    await house.lease(0, 0, draining=True)
    assert not draining.done()
    await house.say(messages.Report(clients=0))
    await house.obey(messages.Drain)
    await draining
    await house.member.leave()
    assert await house.store.list_members() == ()


async def test_when_the_compute_process_dies_every_call_ends(house: House) -> None:
    loading = asyncio.create_task(house.member.load(over(1)))
    assert isinstance(await house.heard(), messages.Load)
    await house.compute.close()
    with pytest.raises(UnavailableError, match="compute process died"):
        await loading
    with pytest.raises(UnavailableError, match="compute process died"):
        await house.member.drain(0)


async def test_what_stops_a_compute_process_at_its_start_is_raised() -> None:
    ours, theirs = socket.socketpair()
    pipe, compute = await AsyncPipe.open(ours), await AsyncPipe.open(theirs)
    await compute.send(messages.write(messages.Failed.of(0, ResourceExhaustedError("no memory"))))
    with pytest.raises(ResourceExhaustedError, match="no memory"):
        await begin(pipe, LIFE)
    assert messages.read(await compute.receive()) == messages.Start(LIFE)
    await pipe.close()
    await compute.close()
