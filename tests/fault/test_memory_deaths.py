"""Deaths and power cuts under load, strict: nothing acknowledged is lost or doubled.

`make test` runs a few of each; `make soak` runs 300 kills of the service, 300 of the store and 100 power cuts. Each
test prints what it did (`-rP` shows it). The seed decides what writers do and after how many writes a blow falls, so a
failing one is run again by `pytest 'tests/fault/test_memory_deaths.py::<name>[<blows>-<seed>]'`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from katsura.domain.errors import Reason
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.testing.power import PowerStore
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_load import TreeLoad

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)
AWAY = {Reason.STORE_UNAVAILABLE, Reason.PEER_UNAVAILABLE, Reason.DRAINING}
CHECK_EVERY = 25


def blows(few: int, in_full: int) -> pytest.MarkDecorator:
    """Blows and seeds: one short run, and in `make soak` as many runs as it takes."""
    full = [
        pytest.param(CHECK_EVERY, seed, marks=[pytest.mark.soak, pytest.mark.timeout(900)])
        for seed in range(2, 2 + in_full // CHECK_EVERY)
    ]
    return pytest.mark.parametrize(("blows", "seed"), [(few, 1), *full])


@pytest.fixture
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("always") as server:
        yield server


@pytest.fixture
def power() -> Iterator[PowerStore]:
    with PowerStore("always") as power:
        yield power


@pytest.fixture(autouse=True)
def log_of_faults(tmp_path: Path) -> Iterator[None]:
    """A failure shows what the service said about faults of its own."""
    yield
    text = (tmp_path / "log").read_text(errors="replace") if (tmp_path / "log").exists() else ""
    for fault in text.split("a call failed by our own fault")[1:]:
        if "/Watch" not in fault.partition("\n")[0]:
            print(fault[:4000])


def served(server: EmbeddedStore, folder: Path) -> ServedProcess:
    return memory_process(server, TOKEN, folder / "log")


@asynccontextmanager
async def client_of(process: ServedProcess) -> AsyncIterator[MemoryClient]:
    channel = open_channel(process.address)
    yield MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
    await channel.close()


def tell(what: str, load: TreeLoad) -> None:
    pauses = sorted(load.pauses_s)
    print(
        f"{what}: {len(pauses)} blows, {load.acknowledged} writes acknowledged, {len(load.failures)} attempts failed, "
        f"write again after {pauses[len(pauses) // 2]:.2f} s (median), {pauses[-1]:.2f} s (longest)"
    )


@blows(few=3, in_full=300)
async def test_killing_the_service_loses_and_doubles_nothing(
    server: EmbeddedStore, tmp_path: Path, blows: int, seed: int
) -> None:
    async def kill() -> None:
        await process.kill()
        await process.start()

    async with served(server, tmp_path) as process, client_of(process) as memory:
        load = TreeLoad([memory], seed)
        await load.through(blows, kill)
    assert {failure.reason for failure in load.failures} <= AWAY
    tell("kill -9 of the service", load)


@blows(few=5, in_full=300)
async def test_killing_the_store_loses_and_doubles_nothing(
    server: EmbeddedStore, tmp_path: Path, blows: int, seed: int
) -> None:
    async with served(server, tmp_path) as process, client_of(process) as memory:
        load = TreeLoad([memory], seed)
        await load.through(blows, lambda: asyncio.to_thread(server.restart))
    assert {failure.reason for failure in load.failures} <= AWAY
    tell("kill -9 of the store", load)


@blows(few=4, in_full=100)
async def test_power_cuts_lose_and_double_nothing(power: PowerStore, tmp_path: Path, blows: int, seed: int) -> None:
    """Every other one takes the service along, as where both were on one machine; unsynced tails are torn."""
    drawn = random.Random(seed)
    unsynced = 0

    async def cut() -> None:
        nonlocal unsynced
        machine = drawn.random() < 0.5
        unsynced += (await asyncio.to_thread(power.power_cut, drawn, in_sync=drawn.random() < 0.7)).unsynced_bytes
        if machine:
            await process.kill()
        await asyncio.to_thread(power.start)
        if machine:
            await process.start()

    async with served(power, tmp_path) as process, client_of(process) as memory:
        load = TreeLoad([memory], seed)
        await load.through(blows, cut)
    assert {failure.reason for failure in load.failures} <= AWAY
    tell(f"power cuts, {unsynced} unsynced bytes at stake", load)


async def test_what_a_server_did_not_sync_is_gone_after_a_power_cut_and_what_it_synced_is_not() -> None:
    """The emulator bites: the same writes, never synced, are lost; a death of the process alone loses none of them."""
    for appendfsync, kept in (("no", False), ("always", True)):
        with PowerStore(appendfsync) as power:
            async with served(power, power.folder) as process, client_of(process) as memory:
                await memory.create_tree(tree_id="t")
                await memory.grow("t", [step("user", "said")])
            power.restart()
            async with served(power, power.folder) as process, client_of(process) as memory:
                assert [n.step.content for n in await memory.get_whole_path("t")] == ["said"]
            lost = power.power_cut()
            assert (lost.unsynced_bytes == 0) is kept
            power.start()
            async with served(power, power.folder) as process, client_of(process) as memory:
                assert len((await memory.list_trees()).trees) == kept


async def test_writers_share_syncs(power: PowerStore, tmp_path: Path) -> None:
    """Group commit: what arrives together is synced once, and answered after that."""
    async with served(power, tmp_path) as process, client_of(process) as memory:
        await asyncio.gather(*(memory.create_tree(tree_id=f"t{n}") for n in range(32)))
        before = power.syncs
        for i in range(20):
            await asyncio.gather(*(memory.grow(f"t{n}", [step("user", f"{i}")]) for n in range(32)))
        assert power.syncs - before < 20 * 32
