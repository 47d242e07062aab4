"""Members as the supervisor starts them, with a real store and a real router: found, given work, drained, mourned."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from katsura.api.experts.v1 import experts_service_pb2 as pb
from katsura.attention.config import ShardConfig
from katsura.attention.pool import make_pool
from katsura.attention.runner import Model
from katsura.domain.errors import FailedPreconditionError, OutOfRangeError
from katsura.domain.ids import DeploymentName, Incarnation
from katsura.domain.leases import MemberLease
from katsura.domain.shape import layout_for
from katsura.domain.tables import ExpertTable
from katsura.engine.worker import load_experts
from katsura.model.ffn import FfnInput
from katsura.rpc.channel import open_channel
from katsura.sdk.connection import Connection
from katsura.sdk.experts import ExpertClient
from katsura.state.connect import Store
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.testing.compute import environment
from katsura.testing.members import member_environment
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore
from katsura.testing.tiny import save_tiny
from katsura.weights.load import read_config

LAYERS = 3
SIZES = {"FFN_SLICES": 4, "FFN_GROUPS": 4}
T = TypeVar("T")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "m", "llama").folder


class House:
    """A store; routers and members on demand; everything ends with the test."""

    def __init__(self, model: Path, folder: Path, valkey: EmbeddedStore, store: RedisHintStore, stack: AsyncExitStack):
        self.model, self.folder, self.valkey, self.store, self._stack = model, folder, valkey, store, stack

    async def member(self, name: str) -> tuple[ServedProcess, ExpertClient]:
        variables = member_environment(
            self.model, name, self.folder / "shm", **SIZES, LISTEN=f"unix:{self.folder}/{name}",
            STORE_URL=self.valkey.url, HINTS_URL=self.valkey.url, DRAIN_TIMEOUT_S=20, MODEL_ALIASES="x,y",
        )  # fmt: skip
        process = ServedProcess("katsura.experts", variables, self.folder / f"{name}.log")
        await self._stack.enter_async_context(process)
        channel = await self._stack.enter_async_context(open_channel(process.address))
        return process, ExpertClient(Connection(channel, "t", timeout_s=30.0))

    async def router(self) -> ServedProcess:
        variables = {
            "KATSURA_LISTEN": f"unix:{self.folder}/router", "KATSURA_INSTANCE_ID": "router",
            "KATSURA_HINTS_URL": self.valkey.url, "KATSURA_INTERNAL_TOKEN": "t",
        }  # fmt: skip
        process = ServedProcess("katsura.router", variables, self.folder / "router.log")
        await self._stack.enter_async_context(process)
        return process

    async def lease(self, name: str) -> MemberLease | None:
        return next((m for m in await self.store.list_members() if m.instance_id == name), None)

    async def served_table(self, *names: str, after: int = 0) -> ExpertTable:
        """The committed table over exactly these members, once all of them serve it."""

        async def found() -> ExpertTable | None:
            leases = {m.instance_id: m for m in await self.store.list_members()}
            if not set(names) <= leases.keys():
                return None
            revision = leases[names[0]].revision_id  # type: ignore[index]
            table = (await self.store.read_expert_tables(DeploymentName("tiny"), revision)).value.committed
            if table is None or table.epoch <= after or {a.member_id for a in table.assignments} != set(names):
                return None
            return table if all(leases[n].serving_epoch == table.epoch for n in names) else None  # type: ignore[index]

        return await until(found)


async def until(found: Callable[[], Awaitable[T | None]], limit_s: float = 60.0) -> T:
    limit = time.monotonic() + limit_s
    while (value := await found()) is None:
        assert time.monotonic() < limit, "it did not come to that"
        await asyncio.sleep(0)
    return value


@pytest.fixture
async def house(model: Path) -> AsyncIterator[House]:
    with tempfile.TemporaryDirectory(prefix="ki") as folder, EmbeddedStore() as valkey:
        async with AsyncExitStack() as stack:
            store = RedisHintStore(await Store.open(valkey.url, libraries=[LIBRARY]))
            stack.push_async_callback(store.close)
            yield House(model, Path(folder), valkey, store, stack)


async def is_serving(process: ServedProcess) -> bool:
    """What a kubelet's probe finds."""
    async with open_channel(process.address) as channel:
        found = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30.0)
    return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_member_is_ready_once_a_table_in_force_counts_on_it_and_until_it_is_drained(house: House) -> None:
    first, client = await house.member("m0")
    assert not await is_serving(first)
    await client.load([pb.GroupRange(layer_start=0, layer_end=LAYERS, groups=[0, 1, 2, 3])])
    assert not await is_serving(first), "what it holds is nothing to rely on while no table says so"
    await house.router()
    await house.served_table("m0")
    await until(lambda: none_unless(is_serving(first)))
    second, _ = await house.member("m1")
    await until(lambda: none_unless(is_serving(second)))
    table = await house.served_table("m0", "m1")
    for group in range(4):
        assert sum(each.holds(layer, group) for each in table.assignments for layer in range(LAYERS)) == 2 * LAYERS
    await client.drain(20_000)
    await until(lambda: none_unless(is_serving(first), wanted=False))
    assert await is_serving(second)


async def none_unless(asked: Awaitable[bool], wanted: bool = True) -> bool | None:
    return True if await asked is wanted else None


def apply_all(house: House, table: ExpertTable) -> None:
    """Every layer through the table's members has the bits of one process."""
    config = ShardConfig.from_env(environment(house.model, **SIZES), "attention")
    layout = layout_for(read_config(house.model).shape, 4, 4)
    opened = Model.open(house.model, layout, config.dtype, config.numerics, None)
    pool, local = make_pool(config, opened)[0], load_experts(config, opened)[0]
    pool.turn_to(table)
    pool.begin(Incarnation(1), 1, time.monotonic() + 60, "")
    with torch.inference_mode():
        for layer in range(LAYERS):
            inputs = FfnInput(torch.randn(3, 48), None)
            assert torch.equal(pool.apply(layer, inputs), local.apply(layer, inputs))
    pool.close()


async def test_members_start_empty_are_given_work_by_the_router_and_serve_it(house: House) -> None:
    await house.member("a")
    lease = await until(lambda: house.lease("a"))
    assert (lease.loaded, lease.serving_epoch) == ((), 0)
    assert lease.unit_cost_s > 0
    assert [endpoint.partition(":")[0] for endpoint in lease.data_endpoints] == ["shm", "tcp"]
    await house.member("b")
    await house.router()
    table = await house.served_table("a", "b")
    held = {(a.member_id, g) for a in table.assignments for r in (*a.primary, *a.alternate) for g in r.groups}
    assert {group for _, group in held} == {0, 1, 2, 3}
    await asyncio.to_thread(apply_all, house, table)


async def test_a_member_that_is_told_to_end_is_replaced_first_and_gives_its_lease_back(house: House) -> None:
    a, _ = await house.member("a")
    await house.member("b")
    await house.router()
    before = await house.served_table("a", "b")
    assert await a.terminate() == 0
    assert await house.lease("a") is None
    after = await house.served_table("b", after=before.epoch)
    await asyncio.to_thread(apply_all, house, after)


async def test_either_half_takes_the_other_with_it(house: House) -> None:
    a, _ = await house.member("a")
    compute = child_of(a.pid)
    a.send(signal.SIGKILL)
    await until(lambda: ended(compute))
    b, _ = await house.member("b")
    os.kill(child_of(b.pid), signal.SIGKILL)
    assert await b.ended() == 1
    assert "compute process died" in (house.folder / "b.log").read_text()


def child_of(pid: int) -> int:
    """The compute process of a member."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def ended(pid: int) -> bool | None:
    return has_ended(pid) or None


async def test_groups_are_loaded_probed_and_given_up_by_call(house: House) -> None:
    _, client = await house.member("a")
    wanted = [pb.GroupRange(layer_start=0, layer_end=2, groups=[1, 3])]
    member = await client.load(wanted)
    assert list(member.loaded) == wanted
    assert await client.load(wanted) == member
    assert 0 < member.loaded_bytes < member.capacity_bytes
    digests = await client.probe()
    assert [(d.layer, d.group) for d in digests] == [(0, 1), (0, 3), (1, 1), (1, 3)]
    assert len({d.digest for d in digests}) == 4
    assert await client.probe([pb.GroupRange(layer_start=1, layer_end=2, groups=[3])]) == digests[3:]
    with pytest.raises(OutOfRangeError):
        await client.load([pb.GroupRange(layer_start=0, layer_end=9, groups=[0])])
    with pytest.raises(FailedPreconditionError, match="not loaded"):
        await client.probe([pb.GroupRange(layer_start=2, layer_end=3, groups=[0])])
    left = await client.unload([pb.GroupRange(layer_start=0, layer_end=1, groups=[1, 3])])
    assert list(left.loaded) == [pb.GroupRange(layer_start=1, layer_end=2, groups=[1, 3])]


async def test_what_the_table_names_is_not_unloaded(house: House) -> None:
    _, client = await house.member("a")
    await house.router()
    await house.served_table("a")
    with pytest.raises(FailedPreconditionError, match="drain the member instead"):
        await client.unload([pb.GroupRange(layer_start=0, layer_end=1, groups=[0])])
    member = await client.get_member()
    assert [list(r.groups) for r in member.loaded] == [[0, 1, 2, 3]]


async def test_a_drained_member_refuses_and_says_so(house: House) -> None:
    _, client = await house.member("a")
    drained = await client.drain(timeout_ms=5000)
    assert drained.drain.draining
    assert (await client.get_member()).drain.draining
    lease = await until(lambda: house.lease("a"))
    assert lease.draining


async def test_a_store_that_goes_away_does_not_end_a_member(house: House) -> None:
    _, client = await house.member("a")
    await house.router()
    table = await house.served_table("a")
    house.valkey.kill()
    await asyncio.to_thread(apply_all, house, table)
    house.valkey.start()
    assert (await client.get_member()).epoch == table.epoch
    assert (await until(lambda: house.lease("a"))).serving_epoch == table.epoch
