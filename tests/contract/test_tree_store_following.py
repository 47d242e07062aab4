"""Watching many trees: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from katsura.domain.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import EventKind, TreePolicy
from katsura.memory.core import limits
from katsura.memory.following import Followed, follow
from katsura.state import keys
from katsura.state.connect import Store
from katsura.state.contents import TreeChange
from katsura.state.objects import FolderObjects
from katsura.state.trees import NewTree, TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.watching import Event
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NO_REQUEST, grow, new_ref, refused

TEAM = {"team": "a"}
LIMIT_S = 60.0


class Watch:
    """A watch that is waited for, and its tokens as a client keeps them."""

    def __init__(self, events: AsyncGenerator[Event, None], tokens: Mapping[str, str]) -> None:
        self.events = events
        self.tokens = dict(tokens)

    async def next(self) -> Event:
        async with asyncio.timeout(LIMIT_S):
            event = await anext(self.events)
        if event.kind in (EventKind.TREE_DELETED, EventKind.TREE_LEFT):
            self.tokens.pop(event.tree_id, None)
        elif event.resume_token:
            self.tokens[event.tree_id] = event.resume_token
        return event

    async def stands(self) -> None:
        while (event := await self.next()).tree_id or event.kind is not EventKind.HEARTBEAT:
            assert event.kind is EventKind.HEARTBEAT

    async def take(self, count: int) -> list[tuple[str, int]]:
        """Trees and revisions of the next commits."""
        found: list[tuple[str, int]] = []
        while len(found) < count:
            if (event := await self.next()).kind is not EventKind.HEARTBEAT:
                found.append((event.tree_id, event.position.revision))
        return found


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[TreeStore]:
    if request.param == "twin":
        yield TwinTreeStore(LIMITS)
        return
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield RedisTreeStore(connection, LIMITS, objects=FolderObjects(tmp_path))
    await connection.close()


@pytest.fixture
def tenant() -> TenantId:
    return new_ref().tenant


@asynccontextmanager
async def watching(
    store: TreeStore,
    tenant: TenantId,
    *tree_ids: str,
    labels: Mapping[str, str] | None = None,
    tokens: Mapping[str, str] | None = None,
    from_now: bool = False,
    heartbeat_s: float = 600.0,
) -> AsyncIterator[Watch]:
    asked = Followed(tree_ids, labels or {}, tokens or {}, from_now)
    events = cast(AsyncGenerator[Event, None], follow(store, tenant, asked, heartbeat_s))
    try:
        yield Watch(events, tokens or {})
    finally:
        await events.aclose()


async def make(
    store: TreeStore, tenant: TenantId, name: str, labels: Mapping[str, str] = TEAM, ttl_s: int = 0
) -> TreeRef:
    ref = TreeRef(tenant, TreeId(name))
    await store.create(ref, NewTree("", (), TreePolicy(ttl_s=ttl_s), labels), NO_REQUEST)
    return ref


async def relabel(store: TreeStore, ref: TreeRef, labels: Mapping[str, str], *without: str) -> int:
    change = TreeChange(set_labels=labels, remove_labels=without)
    return (await store.update(ref, change, NO_REQUEST)).revision


async def expire(store: TreeStore, ref: TreeRef) -> None:
    """What the server does with a tree whose time is over."""
    if isinstance(store, TwinTreeStore):
        del store._trees[ref]
    else:
        assert isinstance(store, RedisTreeStore)
        client = store._store.client
        await client.unlink(*[key async for key in client.scan_iter(keys.tree(ref.tenant, ref.tree, "*"))])


async def test_a_watch_of_a_label_tells_each_tree_that_has_it_and_no_other(store: TreeStore, tenant: TenantId) -> None:
    a, b = await make(store, tenant, "a"), await make(store, tenant, "b", {"team": "b"})
    await grow(store, a, "x")
    await grow(store, b, "x")
    async with watching(store, tenant, labels=TEAM) as watch:
        await watch.stands()
        assert await watch.take(2) == [("a", 1), ("a", 2)]
        await grow(store, b, "y")
        await grow(store, a, "y")
        assert await watch.take(1) == [("a", 3)]


async def test_trees_are_named_or_have_the_label(store: TreeStore, tenant: TenantId) -> None:
    for name in ("a", "b"):
        await make(store, tenant, name)
    other = await make(store, tenant, "c", {})
    async with watching(store, tenant, "c", "a", labels=TEAM) as watch:
        assert sorted(await watch.take(3)) == [("a", 1), ("b", 1), ("c", 1)]
        await grow(store, other, "x")
        assert await watch.take(1) == [("c", 2)]


async def test_a_watch_from_now_leaves_out_what_is_kept_and_can_be_resumed_before_anything_came(
    store: TreeStore, tenant: TenantId
) -> None:
    a = await make(store, tenant, "a")
    await grow(store, a, "x")
    async with watching(store, tenant, labels=TEAM, from_now=True) as watch:
        await watch.stands()
    await grow(store, a, "y")
    await make(store, tenant, "b")
    async with watching(store, tenant, labels=TEAM, tokens=watch.tokens) as watch:
        assert sorted(await watch.take(2)) == [("a", 3), ("b", 1)]


async def test_a_tree_made_in_the_middle_joins_from_its_first_revision(store: TreeStore, tenant: TenantId) -> None:
    async with watching(store, tenant, labels=TEAM, from_now=True) as watch:
        await watch.stands()
        await make(store, tenant, "other", {"team": "b"})
        late = await make(store, tenant, "late")
        await grow(store, late, "x")
        assert await watch.take(2) == [("late", 1), ("late", 2)]
        await grow(store, late, "y")
        assert await watch.take(1) == [("late", 3)]


async def test_a_tree_that_only_the_index_knows_joins_with_the_next_heartbeat(
    store: TreeStore, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def untold(self: object, ref: TreeRef, revision: int) -> None: ...

    await make(store, tenant, "old")
    monkeypatch.setattr("katsura.state.tree_calls.TreeCalls._notice", untold)  # as an older version of us
    async with watching(store, tenant, labels=TEAM, heartbeat_s=0.01) as watch:
        assert await watch.take(1) == [("old", 1)]
        await make(store, tenant, "late")
        assert await watch.take(1) == [("late", 1)]


async def test_labels_let_a_tree_in_and_out(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, tenant, "a", {})
    await grow(store, ref, "before")
    async with watching(store, tenant, labels=TEAM) as watch:
        await watch.stands()
        assert await relabel(store, ref, TEAM) == 3
        assert await watch.take(1) == [("a", 3)]
        await grow(store, ref, "with")
        assert await watch.take(1) == [("a", 4)]
        await relabel(store, ref, {}, "team")
        assert await watch.take(1) == [("a", 5)]
        left = await watch.next()
        assert (left.kind, left.tree_id, left.position.revision) == (EventKind.TREE_LEFT, "a", 5)
        await grow(store, ref, "without")
        await relabel(store, ref, TEAM)
        assert await watch.take(1) == [("a", 7)]


async def test_a_tree_that_lost_the_label_meanwhile_is_told_to_the_end(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, tenant, "a")
    async with watching(store, tenant, labels=TEAM) as watch:
        await watch.stands()
        await watch.take(1)
    await grow(store, ref, "x")
    await relabel(store, ref, {}, "team")
    async with watching(store, tenant, labels=TEAM, tokens=watch.tokens) as watch:
        assert await watch.take(2) == [("a", 2), ("a", 3)]
        assert (await watch.next()).kind is EventKind.TREE_LEFT
        assert set(watch.tokens) == {""}
    tokens = {
        "": watch.tokens[""],
        "a": f"{(await store.shown(ref)).incarnation}.3-{(await store.shown(ref)).update_ms}",
    }
    async with watching(store, tenant, labels=TEAM, tokens=tokens) as watch:
        assert (await watch.next()).kind is EventKind.TREE_LEFT, "nothing is left to tell of it"


async def test_a_deleted_tree_is_told_and_the_last_one_ends_the_watch(store: TreeStore, tenant: TenantId) -> None:
    refs = [await make(store, tenant, name) for name in "ab"]
    async with watching(store, tenant, "a", "b") as watch:
        await watch.take(2)
        for ref in refs:
            await store.drop(ref)
        assert sorted(await watch.take(2)) == [("a", 2), ("b", 2)]
        with pytest.raises(StopAsyncIteration):
            await watch.next()


async def test_a_tree_deleted_while_nobody_watched_is_told_to_the_end(store: TreeStore, tenant: TenantId) -> None:
    ref, other = await make(store, tenant, "a"), await make(store, tenant, "b")
    async with watching(store, tenant, "a", "b") as watch:
        await watch.stands()
        await watch.take(2)
    await grow(store, ref, "x")
    await store.drop(ref)
    async with watching(store, tenant, "a", "b", tokens=watch.tokens) as again:
        assert await again.take(2) == [("a", 2), ("a", 3)]
    async with watching(store, tenant, "a", "b", tokens=again.tokens) as again:
        await grow(store, other, "x")
        assert await again.take(1) == [("b", 2)], "what was told to be deleted is not asked for again"
    token = watch.tokens["a"].partition("-")[0] + "-1"
    async with watching(store, tenant, "a", tokens={**watch.tokens, "a": token}) as again:
        told = await again.next()
        assert (told.kind, told.tree_id) == (EventKind.TREE_DELETED, "a"), "nothing of it is kept after that"


async def test_a_tree_made_anew_under_the_name_is_another_tree(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, tenant, "a")
    async with watching(store, tenant, labels=TEAM) as watch:
        await watch.stands()
        await grow(store, ref, "x")
        await watch.take(2)
    await store.drop(ref)
    await make(store, tenant, "a")
    async with watching(store, tenant, labels=TEAM, tokens=watch.tokens) as watch:
        assert (await watch.next()).kind is EventKind.TREE_DELETED
        await watch.stands()
        assert await watch.take(1) == [("a", 1)]
        await store.drop(ref)
        await make(store, tenant, "a")  # maybe before the deletion was read, and then nothing is left to read of it
        assert [(await watch.next()).kind for _ in range(2)] == [EventKind.TREE_DELETED, EventKind.TREE_CREATED]


async def test_a_tree_that_expired_is_told_with_the_next_heartbeat(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, tenant, "a", ttl_s=3600)
    async with watching(store, tenant, labels=TEAM, heartbeat_s=0.01) as watch:
        await watch.take(1)
        await expire(store, ref)
        while (event := await watch.next()).kind is EventKind.HEARTBEAT:
            continue
        assert (event.kind, event.tree_id) == (EventKind.TREE_DELETED, "a")


async def test_a_cold_tree_stays_cold_and_is_told_when_it_comes_back(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, tenant, "a")
    await grow(store, ref, "x")
    assert await store.freeze(ref)
    async with watching(store, tenant, labels=TEAM, from_now=True) as watch:
        await watch.stands()
        assert (await store.shown(ref)).cold
    async with watching(store, tenant, labels=TEAM, tokens=watch.tokens) as watch:
        await watch.stands()
        await grow(store, ref, "y")
        assert await watch.take(2) == [("a", 3), ("a", 4)]


async def test_a_point_that_is_no_longer_kept_names_the_tree(store: TreeStore, tenant: TenantId) -> None:
    refs = [await make(store, tenant, name) for name in "ab"]
    async with watching(store, tenant, "a", "b") as watch:
        await watch.stands()
        await watch.take(2)
    for i in range(3 * LIMITS.events):
        await grow(store, refs[1], f"s{i}")
    async with watching(store, tenant, "a", "b", tokens=watch.tokens) as again:
        error = await refused(OutOfRangeError, Reason.WATCH_COMPACTED, again.next())
        assert error.metadata["tree_id"] == "b"
    del watch.tokens["b"]
    async with watching(store, tenant, "a", "b", tokens=watch.tokens) as again:
        ((name, revision),) = await again.take(1)
        assert name == "b"
        assert revision > 1
    async with watching(store, tenant, "a", tokens={"": "otherlife.0-0"}) as again:
        await refused(OutOfRangeError, Reason.WATCH_COMPACTED, again.next())


async def test_a_watcher_that_is_slow_reads_by_itself_and_holds_nobody_up(
    store: TreeStore, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.tree_watch._TAIL_EVENTS", 2)
    refs = [await make(store, tenant, name) for name in "ab"]
    async with watching(store, tenant, labels=TEAM) as slow, watching(store, tenant, labels=TEAM) as quick:
        await slow.stands()
        await quick.stands()
        for i in range(20):
            for ref in refs:
                await grow(store, ref, f"s{i}")
        for watch in (quick, slow):
            found = await watch.take(42)
            for name in "ab":
                assert [revision for tree, revision in found if tree == name] == list(range(1, 22))


async def test_trees_of_others_are_unknown(store: TreeStore, tenant: TenantId) -> None:
    ref = await make(store, new_ref().tenant, "theirs")
    for name in ("theirs", "nothere", "bad name/{}", ""):
        async with watching(store, tenant, name) as watch:
            error = await refused(NotFoundError, Reason.TREE_NOT_FOUND, watch.next())
            assert error.message == f"tree {name!r} does not exist"
    async with watching(store, ref.tenant, "theirs") as watch:
        await watch.stands()
        await watch.take(1)
    mine = await make(store, tenant, "mine")
    async with watching(store, tenant, labels=TEAM, tokens=watch.tokens) as again:
        told = await again.next()
        assert (told.kind, told.tree_id, told.position.revision) == (EventKind.TREE_DELETED, "theirs", 1)
        await grow(store, ref, "x")
        await grow(store, mine, "x")
        assert await again.take(2) == [("mine", 1), ("mine", 2)]


async def test_more_trees_than_one_watch_follows_are_refused(
    store: TreeStore, tenant: TenantId, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TREES_WATCHED_MAX", 2)
    for name in "ab":
        await make(store, tenant, name)
    async with watching(store, tenant, labels=TEAM) as watch:
        await watch.stands()
        await watch.take(2)
        await make(store, tenant, "c")
        error = await refused(ResourceExhaustedError, Reason.QUEUE_FULL, watch.next())
        assert error.field == "labels"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "tree_ids"),
        ({"tree_ids": ("a", "a")}, "tree_ids[1]"),
        ({"tree_ids": tuple(f"t{i}" for i in range(limits.TREES_WATCHED_MAX + 1))}, "tree_ids"),
        ({"tree_ids": ("a",), "tokens": {"": "x.0-0"} | {f"t{i}": "x.1-1" for i in range(1001)}}, "resume_tokens"),
        ({"tree_ids": ("a",), "tokens": {"a": "x.1-1"}}, "resume_tokens"),
        ({"tree_ids": ("a",), "tokens": {"": "what"}}, "resume_token"),
        ({"labels": {str(i): "" for i in range(65)}}, "labels"),
    ],
)
def test_what_cannot_be_watched_is_refused(asked: dict[str, object], field: str) -> None:
    fields = {"tree_ids": (), "labels": {}, "tokens": {}, "from_now": False} | asked
    with pytest.raises(InvalidArgumentError) as caught:
        Followed(**fields)  # type: ignore[arg-type]
    assert caught.value.field == field
