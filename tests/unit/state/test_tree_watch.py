"""What watchers of one process share: the reader of a tree's tail, and what becomes of them when it ends or is idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from katsura.domain.errors import Reason, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.requests import Request
from katsura.domain.trees import EventKind, TreePolicy
from katsura.state.connect import Store
from katsura.state.trees import Limits, NewTree, TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import grow

REF = TreeRef(TenantId("acme"), TreeId("t"))


@pytest.fixture
def server() -> EmbeddedStore:
    return EmbeddedStore("no")


@pytest.fixture
async def trees(server: EmbeddedStore) -> AsyncIterator[RedisTreeStore]:
    with server:
        store = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
        trees = RedisTreeStore(store, Limits())
        await trees.create(REF, NewTree("", (), TreePolicy(), {}), Request("", ""))
        yield trees
        await store.close()


async def test_all_who_watch_share_one_reader_which_ends_with_the_last(trees: RedisTreeStore) -> None:
    other = TreeRef(REF.tenant, TreeId("other"))
    await trees.create(other, NewTree("", (), TreePolicy(), {}), Request("", ""))
    watches = [trees.watch(ref, "", 0, 30.0) for ref in (REF, REF, other)]
    for events in watches:
        await anext(events)
    assert [len(tail.watchers) for tail in trees._tails.values()] == [2, 1]
    reading = trees._reader._reading
    for events in watches:
        assert reading is not None
        assert not reading.done()
        await events.aclose()  # type: ignore[attr-defined]
    assert reading is not None and reading.done()  # noqa: PT018
    assert not trees._tails


async def test_a_store_that_falls_silent_is_told_to_all_who_watch(
    trees: RedisTreeStore, server: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.stream_reader._BLOCK_S", 0.01)
    monkeypatch.setattr("katsura.state.stream_reader._SILENT_S", 2.0)
    watches = [trees.watch(REF, "", 0, 30.0) for _ in range(3)]
    for events in watches:
        await anext(events)
    server.freeze()
    told = await asyncio.gather(*map(anext, watches), return_exceptions=True)
    server.thaw()
    assert [getattr(error, "reason", error) for error in told] == [Reason.STORE_UNAVAILABLE] * 3
    assert all(isinstance(error, UnavailableError) for error in told)
    again = trees.watch(REF, "", 0, 30.0)
    assert (await anext(again)).kind is EventKind.TREE_CREATED
    await again.aclose()  # type: ignore[attr-defined]


async def test_an_idle_reader_keeps_no_heartbeat_back(trees: RedisTreeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("katsura.state.stream_reader._BLOCK_S", 0.01)
    events = trees.watch(REF, "", -1, 0.2)
    assert (await anext(events)).kind is EventKind.HEARTBEAT
    await events.aclose()  # type: ignore[attr-defined]


async def test_what_is_kept_is_told_to_the_end_though_nothing_new_comes(
    trees: RedisTreeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.tree_watch._EVENTS_PER_READ", 2)
    for i in range(6):
        await grow(trees, REF, str(i))
    events = trees.watch(REF, "", 0, 600.0)
    async with asyncio.timeout(30):
        assert [(await anext(events)).position.revision for _ in range(7)] == list(range(1, 8))
    await events.aclose()  # type: ignore[attr-defined]
