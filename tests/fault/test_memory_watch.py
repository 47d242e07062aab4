"""Watchers of many trees while the service or its store is killed: the client goes on, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.domain.errors import UnavailableError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.sdk.watching import WatchedTrees
from katsura.testing.process import ServedProcess, memory_process
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)
TEAM = {"team": "a"}
LIMIT_S = 60.0
TREES, BLOWS, WRITES = 5, 3, 8


@pytest.fixture
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("always") as server:
        yield server


@pytest.fixture
async def process(server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[ServedProcess]:
    async with memory_process(server, TOKEN, tmp_path / "log", {"KATSURA_MEMORY_HEARTBEAT_S": "0.2"}) as process:
        yield process


@asynccontextmanager
async def client_of(process: ServedProcess) -> AsyncIterator[MemoryClient]:
    channel = open_channel(process.address)
    yield MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
    await channel.close()


class Listener:
    """What one watch tells, tree by tree."""

    def __init__(self, watched: WatchedTrees) -> None:
        self.watched = watched
        self.heard: dict[str, list[int]] = {}
        self._changed = asyncio.Condition()

    async def listen(self) -> None:
        async with aclosing(self.watched):
            async for event in self.watched:
                if event.kind != pb.EVENT_KIND_HEARTBEAT:
                    self.heard.setdefault(event.tree_id, []).append(event.position.revision)
                async with self._changed:
                    self._changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S), self._changed:
            await self._changed.wait_for(holds)


async def answered(call: Callable[[], Awaitable[object]]) -> None:
    """Until it is: what is repeated carries its own idempotency key."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await call()
            except UnavailableError:
                continue
            return


@pytest.mark.parametrize("victim", ["service", "store"])
async def test_a_watch_of_a_label_goes_on_through_deaths(
    process: ServedProcess, server: EmbeddedStore, victim: str
) -> None:
    drawn = random.Random(7)

    async def write(memory: MemoryClient, blow: int) -> None:
        await answered(lambda: memory.create_tree(tree_id=f"late{blow}", labels=TEAM, request_id=f"late{blow}"))
        for i in range(WRITES):
            name, text = f"t{drawn.randrange(TREES)}", f"{blow}-{i}"
            await answered(lambda: memory.grow(name, [step("user", text)], request_id=text))  # noqa: B023

    async def strike() -> None:
        if victim == "service":
            await process.kill()
            await process.start()
        else:
            await asyncio.to_thread(server.restart)

    async with client_of(process) as memory:
        for i in range(TREES):
            await memory.create_tree(tree_id=f"t{i}", labels=TEAM)
        await memory.create_tree(tree_id="other")
        listener = Listener(memory.watch_trees(labels=TEAM))
        listening = asyncio.create_task(listener.listen())
        await listener.until(lambda: len(listener.heard) == TREES)
        for blow in range(BLOWS):
            await asyncio.gather(write(memory, blow), strike())
        names = [*(f"t{i}" for i in range(TREES)), *(f"late{blow}" for blow in range(BLOWS))]
        revisions = {name: (await memory.get_tree(name)).tree.revision for name in names}
        await listener.until(lambda: {name: heard[-1] for name, heard in listener.heard.items()} == revisions)
        listening.cancel()
        await asyncio.wait((listening,))
    assert listener.heard == {name: list(range(1, last + 1)) for name, last in revisions.items()}
    assert sum(revisions.values()) >= TREES + BLOWS * (WRITES + 1)


async def test_a_watch_is_taken_up_by_another_process_with_one_token(process: ServedProcess) -> None:
    async with client_of(process) as memory:
        for name in ("a", "b"):
            await memory.create_tree(tree_id=name, labels=TEAM)
        first = memory.watch_trees(["a"], labels=TEAM, from_now=True)
        async with aclosing(first):
            while not first.resume_token:
                assert (await anext(aiter(first))).kind == pb.EVENT_KIND_HEARTBEAT
        for name in ("b", "a"):
            await memory.grow(name, [step("user", "x")])
        await memory.create_tree(tree_id="c", labels=TEAM)
        second = Listener(memory.watch_trees(["a"], labels=TEAM, resume_token=first.resume_token))
        listening = asyncio.create_task(second.listen())
        await second.until(lambda: second.heard == {"a": [2], "b": [2], "c": [1]})
        await memory.delete_tree("b")
        await second.until(lambda: second.heard["b"] == [2, 3])
        listening.cancel()
        await asyncio.wait((listening,))
