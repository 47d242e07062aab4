"""Deaths of the memory service and of its store: nothing acknowledged is lost or doubled, and nothing hangs.

Every client repeats a call with the same request id until it is answered, as the API tells it to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from katsura.domain.errors import DataLossError, KatsuraError, Reason, TemporaryError, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.tenant import Tenant
from katsura.domain.trees import Request, Step, TreePolicy
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.state import keys
from katsura.state.connect import Store, translated
from katsura.state.trees import Limits, NewStep, NewTree, TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)
WRITERS, WRITES = 6, 25
DEADLINE_S = 120.0


@pytest.fixture(params=["everysec", "always"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedStore]:
    with EmbeddedStore(request.param) as server:
        yield server


@pytest.fixture
async def process(server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    environment = {
        "KATSURA_LISTEN": f"unix:{server.folder}/memory.sock",
        "KATSURA_STORE_URL": server.url,
        "KATSURA_INTERNAL_TOKEN": TOKEN,
    }
    async with ServedProcess("katsura.memory", environment, tmp_path / "log") as process:
        yield process


@pytest.fixture
async def memory(process: ServedProcess) -> AsyncIterator[MemoryClient]:
    channel = open_channel(process.address)
    yield MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
    await channel.close()


class Load:
    """Writers on trees of their own and on one shared tree; every write is repeated until it is acknowledged."""

    def __init__(self, memory: MemoryClient) -> None:
        self.memory = memory
        self.acknowledged = 0
        self.failures: list[KatsuraError] = []
        self._marks: dict[int, asyncio.Event] = {}

    async def reached(self, count: int) -> None:
        """Wait until so many writes were acknowledged."""
        if self.acknowledged < count:
            await self._marks.setdefault(count, asyncio.Event()).wait()

    async def run(self) -> None:
        await self.memory.create_tree(tree_id="shared", request_id="create-shared")
        await asyncio.gather(*(self._writer(n) for n in range(WRITERS)))

    async def check(self) -> None:
        """Every acknowledged step is there once; a single writer's steps are in its order."""
        for n in range(WRITERS):
            path = await self.memory.get_whole_path(f"own{n}")
            assert [node.step.content for node in path] == [f"{n}.{i}" for i in range(WRITES)]
            tree = (await self.memory.get_tree(f"own{n}")).tree
            assert (tree.node_count, tree.revision) == (WRITES, WRITES + 1)
        shared = [node.step.content for node in await self.memory.get_whole_path("shared")]
        assert sorted(shared) == sorted(f"{n}.{i}" for n in range(WRITERS) for i in range(WRITES))

    async def _writer(self, n: int) -> None:
        memory = self.memory
        await self._until_answered(lambda: memory.create_tree(tree_id=f"own{n}", request_id=f"create-{n}"))
        head = 0
        for i in range(WRITES):
            new, seen = [step("user", f"{n}.{i}")], head

            async def own(new: list = new, seen: int = seen, i: int = i) -> int:  # type: ignore[type-arg]
                answer = await memory.grow(f"own{n}", new, expected_head=seen, request_id=f"{n}.{i}")
                return answer.branch.head

            head = await self._until_answered(own)
            await self._until_answered(lambda new=new, i=i: memory.grow("shared", new, request_id=f"{n}.{i}"))
            self.acknowledged += 1
            for count, mark in self._marks.items():
                if self.acknowledged >= count:
                    mark.set()

    async def _until_answered(self, call: Callable[[], Awaitable[object]]) -> int:
        while True:
            try:
                answer = await call()
                return answer if isinstance(answer, int) else 0
            except TemporaryError as error:
                self.failures.append(error)


async def under_load(load: Load, kill: Callable[[], Awaitable[object]], kills: int, seed: int) -> None:
    """Run the load and kill at `kills` points of it."""
    points = sorted(random.Random(seed).sample(range(5, WRITERS * WRITES - 5), kills))
    running = asyncio.create_task(load.run())
    async with asyncio.timeout(DEADLINE_S):
        for point in points:
            await load.reached(point)
            await kill()
        await running


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.soak), pytest.param(3, marks=pytest.mark.soak)])
async def test_killing_the_service_under_load_loses_and_doubles_nothing(
    process: ServedProcess, memory: MemoryClient, seed: int
) -> None:
    async def kill() -> None:
        await process.kill()
        await process.start()

    load = Load(memory)
    await under_load(load, kill, 2, seed)
    await load.check()


@pytest.mark.parametrize("seed", [4, pytest.param(5, marks=pytest.mark.soak), pytest.param(6, marks=pytest.mark.soak)])
@pytest.mark.parametrize("server", ["always"], indirect=True)
async def test_killing_a_strict_store_under_load_loses_and_doubles_nothing(
    server: EmbeddedStore, memory: MemoryClient, seed: int
) -> None:
    load = Load(memory)
    await under_load(load, lambda: asyncio.to_thread(server.restart), 5, seed)
    await load.check()
    assert all(error.reason in {Reason.STORE_UNAVAILABLE, Reason.PEER_UNAVAILABLE} for error in load.failures)


@pytest.mark.parametrize("server", ["everysec"], indirect=True)
async def test_killing_a_relaxed_store_may_lose_the_newest_steps_but_breaks_no_tree(
    server: EmbeddedStore, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t", request_id="c")
    for i in range(40):
        if i % 13 == 12:
            await asyncio.to_thread(server.restart)
        await memory.grow("t", [step("user", f"{i:02}")], request_id=f"{i}")
    found = [node.step.content for node in await memory.get_whole_path("t")]
    assert found == sorted(set(found))
    assert found[-1] == "39"


async def test_a_store_that_is_away_is_a_clean_error_and_then_forgotten(
    server: EmbeddedStore, process: ServedProcess, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "before")])
    server.kill()
    short = memory.acting_for(CALL, timeout_s=5.0)
    for attempt in (short.grow("t", [step("user", "lost")]), short.get_tree("t"), anext(short.watch("t"))):
        with pytest.raises(UnavailableError) as caught:
            await attempt
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        assert caught.value.retry_after_s
    await asyncio.to_thread(server.start)
    await memory.grow("t", [step("user", "after")])
    assert [n.step.content for n in await memory.get_whole_path("t")] == ["before", "after"]


async def test_a_watch_goes_on_without_a_gap_after_both_were_killed(
    server: EmbeddedStore, process: ServedProcess, memory: MemoryClient
) -> None:
    await memory.create_tree(tree_id="t")
    seen: list[int] = []
    token = ""
    for life in range(3):
        await memory.grow("t", [step("user", f"{life}")])
        events = memory.watch("t", resume_token=token)
        while len(seen) < life + 2:
            event = await anext(events)
            seen.append(event.position.revision)
            token = event.resume_token
        await events.aclose()
        await asyncio.to_thread(server.restart)
        await process.kill()
        await process.start()
    assert seen == [1, 2, 3, 4]


async def test_an_emptied_store_is_another_life(server: EmbeddedStore, memory: MemoryClient) -> None:
    first = await memory.create_tree(tree_id="t")
    await memory.grow("t", [step("user", "old")], expected_head=0)
    store = await Store.open(server.url)
    with translated(store.url):
        await store.client.flushall()
        await store.client.function_flush()
    second = await memory.create_tree(tree_id="t")
    assert second.tree.store_incarnation != first.tree.store_incarnation
    grown = await memory.grow("t", [step("user", "new")], expected_head=0)
    assert list(grown.node_ids) == [1]
    await store.close()


async def test_a_damaged_node_is_named_and_its_siblings_are_served(server: EmbeddedStore) -> None:
    store = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    trees = RedisTreeStore(store, Limits())
    ref = TreeRef(TenantId("acme"), TreeId("t"))
    nobody = Request("", "")
    await trees.create(ref, NewTree("", (), TreePolicy(), {}), nobody)
    await trees.grow(ref, "", None, [NewStep(Step(f"text {i}"), 5) for i in range(3)], True, nobody)
    nodes = keys.tree(ref.tenant, ref.tree, "nodes")
    with translated(store.url):
        stored = await store.client.hget(nodes, "2")  # type: ignore[misc]
        assert isinstance(stored, bytes)
        await store.client.hset(nodes, "2", stored.replace(b"text 1", b"text 7"))  # type: ignore[misc]
    with pytest.raises(DataLossError) as caught:
        await trees.path(ref, "", 0, 10, 1 << 20)
    assert caught.value.metadata == {"node": "2"}
    sibling = await trees.path(ref, "", 3, 1, 1 << 20)
    assert [n.node_id for n in sibling.nodes] == [3]
    await store.close()
