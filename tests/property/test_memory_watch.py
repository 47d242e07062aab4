"""Random writers on trees that come and go, watchers that are cut off and come back: each tells every revision of every
tree that it watches once and in order (I13), over the twin and a real Valkey. A failing seed is run again by
`pytest 'tests/property/test_memory_watch.py::<name>[<seed>]'`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import cast

import pytest

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import EventKind, TreePolicy
from katsura.memory.following import Followed, follow
from katsura.state.connect import Store
from katsura.state.trees import Limits, NewTree, TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.watching import Event
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import NO_REQUEST, grow, new_ref

TEAM = {"team": "a"}
WRITERS, WRITES, CUTS = 4, 60, 6
LIMIT_S = 60.0


class World:
    """Trees as the writers made them: how far each has come, and which are gone."""

    def __init__(self, store: TreeStore, seed: int) -> None:
        self.store, self.tenant, self.random = store, new_ref().tenant, random.Random(seed)
        self.revisions: dict[str, int] = {}
        self.labelled: set[str] = set()
        self.gone: set[str] = set()
        self.moment = asyncio.Event()

    def ref(self, name: str) -> TreeRef:
        return TreeRef(self.tenant, TreeId(name))

    async def make(self, name: str, *, labelled: bool) -> None:
        labels = TEAM if labelled else {"team": "b"}
        await self.store.create(self.ref(name), NewTree("", (), TreePolicy(), labels), NO_REQUEST)
        self.revisions[name] = 1
        if labelled:
            self.labelled.add(name)

    async def write(self, writer: int) -> None:
        mine: list[str] = []
        for i in range(WRITES):
            drawn = self.random.random()
            if not mine or drawn < 0.1:
                mine.append(f"w{writer}-{i}")
                await self.make(mine[-1], labelled=self.random.random() < 0.7)
            elif drawn < 0.15:
                name = mine.pop(self.random.randrange(len(mine)))
                await self.store.drop(self.ref(name))
                self.revisions[name] += 1
                self.gone.add(name)
            else:
                name = self.random.choice(mine)
                await grow(self.store, self.ref(name), str(i))
                self.revisions[name] += 1
            await asyncio.sleep(0)


class Watcher:
    """Someone who watches, is cut off in the middle of anything, and comes back with the tokens of what was heard."""

    def __init__(self, world: World, *names: str, from_now: bool = False) -> None:
        self.world, self.names, self.from_now = world, names, from_now
        self.tokens: dict[str, str] = {}
        self.heard: dict[str, list[int]] = {}
        self.cuts = 0
        self.changed = asyncio.Event()

    async def hear(self) -> None:
        labels = {} if self.names else TEAM
        asked = Followed(self.names, labels, self.tokens.copy() if "" in self.tokens else {}, self.from_now)
        store, tenant = self.world.store, TenantId(self.world.tenant)
        events = cast(AsyncGenerator[Event, None], follow(store, tenant, asked, 0.05))
        try:
            async for event in events:
                self._note(event)
        finally:
            await events.aclose()

    def _note(self, event: Event) -> None:
        if event.kind is EventKind.TREE_DELETED:
            self.tokens.pop(event.tree_id, None)
        elif event.resume_token:
            self.tokens[event.tree_id] = event.resume_token
        if event.kind is not EventKind.HEARTBEAT:
            self.heard.setdefault(event.tree_id, []).append(event.position.revision)
        self.changed.set()

    async def through(self, cuts: int) -> None:
        """Hear, be cut off after a few events or none, wait a little, and begin again; the last time to the end."""
        for _ in range(cuts):
            hearing = asyncio.create_task(self.hear())
            heard = self.world.random.randrange(12)
            while not hearing.done() and (heard or (self.from_now and "" not in self.tokens)):
                heard -= heard > 0
                self.changed.clear()
                await asyncio.wait((hearing, asyncio.create_task(self.changed.wait())), return_when="FIRST_COMPLETED")
            hearing.cancel()
            await asyncio.wait((hearing,))
            if not hearing.cancelled():
                hearing.result()
            self.cuts += 1
        await self.hear()

    def missing(self) -> dict[str, tuple[int, int]]:
        """Trees of which it has not heard all, with what it heard last and what there is."""
        wanted = self.names or self.world.labelled
        found = {}
        for name in wanted:
            heard = self.heard.get(name, [0])[-1]
            if heard != self.world.revisions[name] and (name in self.heard or name not in self.world.gone):
                found[name] = (heard, self.world.revisions[name])
        return found


async def until(holds: Callable[[], bool], watcher: Watcher, hearing: asyncio.Task[None]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not holds():
            watcher.changed.clear()
            waiting = asyncio.create_task(watcher.changed.wait())
            await asyncio.wait((hearing, waiting), return_when="FIRST_COMPLETED")
            assert not hearing.done(), hearing.result()


async def play(store: TreeStore, seed: int) -> None:
    world = World(store, seed)
    for name in ("old", "named", "other"):
        await world.make(name, labelled=name == "old")
    watchers = [Watcher(world), Watcher(world), Watcher(world, from_now=True), Watcher(world, "named", "old")]
    hearing = [asyncio.create_task(watcher.through(CUTS)) for watcher in watchers]
    await until(lambda: "" in watchers[2].tokens, watchers[2], hearing[2])
    try:
        await asyncio.gather(*(world.write(writer) for writer in range(WRITERS)))
        for name in ("old", "named", "other"):
            await grow(store, world.ref(name), "last")
            world.revisions[name] += 1
        for watcher, task in zip(watchers, hearing, strict=True):
            await until(lambda: watcher.cuts == CUTS and not watcher.missing(), watcher, task)  # noqa: B023
    finally:
        for task in hearing:
            task.cancel()
        await asyncio.wait(hearing)
    for watcher in watchers:
        wanted = set(watcher.names) or world.labelled
        assert watcher.heard.keys() <= wanted
        for name, revisions in watcher.heard.items():
            first = 2 if watcher.from_now and name == "old" else 1
            assert revisions == list(range(first, world.revisions[name] + 1)), (name, watcher.names)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("no") as server:
        yield server


@pytest.mark.parametrize("seed", range(6))
async def test_every_revision_is_told_once_and_in_order_by_the_twin(seed: int) -> None:
    await play(TwinTreeStore(Limits()), seed)


async def on_valkey(server: EmbeddedStore, seed: int, prepare: Callable[[], None]) -> None:
    store = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    prepare()
    try:
        await play(RedisTreeStore(store, Limits()), seed)
    finally:
        await store.close()


@pytest.mark.parametrize("seed", range(3))
async def test_every_revision_is_told_once_and_in_order_by_valkey(server: EmbeddedStore, seed: int) -> None:
    await on_valkey(server, seed, lambda: None)


@pytest.mark.parametrize("seed", range(2))
async def test_the_same_where_every_watcher_is_too_slow_for_what_is_shared(
    server: EmbeddedStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await on_valkey(server, seed, lambda: monkeypatch.setattr("katsura.state.tree_watch._TAIL_EVENTS", 1))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 300))
async def test_two_hundred_seeds_on_valkey(server: EmbeddedStore, seed: int) -> None:
    await on_valkey(server, seed, lambda: None)
