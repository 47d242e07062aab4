"""Watching memory trees: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from katsura.domain.errors import (
    KatsuraError,
    OutOfRangeError,
    Reason,
)
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import (
    EventKind,
    Hint,
    Request,
    Step,
    TreePolicy,
)
from katsura.state.connect import Store
from katsura.state.trees import Event, Grown, Limits, NewStep, NewTree, Revised, TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing.store import EmbeddedStore

LIMITS = Limits(events=100, replays=8)
NEW = NewTree("find the cheapest hotel", ("never pay twice",), TreePolicy(raw_token_limit=50), {"team": "a"})
NO_REQUEST = Request("", "")
BIG = 1 << 30
counter = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore) -> AsyncIterator[TreeStore]:
    if request.param == "twin":
        yield TwinTreeStore(LIMITS)
        return
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield RedisTreeStore(connection, LIMITS)
    await connection.close()


@pytest.fixture
async def ref(store: TreeStore) -> TreeRef:
    ref = TreeRef(TenantId(f"tenant{next(counter)}"), TreeId("tree"))
    await store.create(ref, NEW, NO_REQUEST)
    return ref


def step(content: str, **fields: object) -> NewStep:
    return NewStep(replace(Step(content), **fields), tokens=10)  # type: ignore[arg-type]


async def grow(store: TreeStore, ref: TreeRef, *contents: str, branch: str = "", merge: bool = True) -> Grown:
    return await store.grow(ref, branch, None, [step(c) for c in contents], merge, NO_REQUEST)


async def revise(store: TreeStore, ref: TreeRef, restore: int, request: Request = NO_REQUEST) -> Revised:
    retreat = await store.retreat(ref, "", None, restore)
    hint = Hint(retreat.branch.name, retreat.branch.head, retreat.restore_after, "wrong", "x", retreat.previous_hint)
    return await store.revise(ref, retreat, hint, 5, "", True, request)


async def refused(kind: type[KatsuraError], reason: Reason, attempt: object) -> KatsuraError:
    with pytest.raises(kind) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.reason is reason
    return caught.value


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    return [await anext(events) for _ in range(count)]


async def test_watch_tells_every_commit_once_and_in_order(store: TreeStore, ref: TreeRef) -> None:
    events = store.watch(ref, "", 0, 5.0)
    await grow(store, ref, "a", "b")
    await grow(store, ref, "c")
    revised = await revise(store, ref, 1)
    await store.fork(ref, "", 0, "side", NO_REQUEST)
    seen = await take(events, 5)
    assert [(e.kind, e.position.revision) for e in seen] == [
        (EventKind.TREE_CREATED, 1),
        (EventKind.GROWN, 2),
        (EventKind.GROWN, 3),
        (EventKind.REVISED, 4),
        (EventKind.FORKED, 5),
    ]
    assert [e.node_ids for e in seen] == [(), (1, 2), (3,), (revised.hint.node_id,), ()]
    waiting = asyncio.ensure_future(anext(events))
    await grow(store, ref, "late", branch="side")
    assert (await waiting).branch == "side"
    await events.aclose()  # type: ignore[attr-defined]


async def test_watch_resumes_without_a_gap(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    events = store.watch(ref, "", 0, 5.0)
    token = (await take(events, 1))[0].resume_token
    await events.aclose()  # type: ignore[attr-defined]
    await grow(store, ref, "b")
    resumed = store.watch(ref, token, 0, 5.0)
    assert [e.position.revision for e in await take(resumed, 2)] == [2, 3]
    await resumed.aclose()  # type: ignore[attr-defined]
    by_revision = store.watch(ref, "", 2, 5.0)
    assert (await anext(by_revision)).position.revision == 3
    await by_revision.aclose()  # type: ignore[attr-defined]


async def test_watch_beats_while_nothing_happens_and_ends_with_the_tree(store: TreeStore, ref: TreeRef) -> None:
    events = store.watch(ref, "", -1, 0.01)
    assert (await anext(events)).kind is EventKind.HEARTBEAT
    await store.drop(ref)
    kinds = [e.kind async for e in events if e.kind is not EventKind.HEARTBEAT]
    assert kinds == [EventKind.TREE_DELETED]


async def test_watch_from_a_point_that_is_no_longer_kept_is_refused(store: TreeStore, ref: TreeRef) -> None:
    events = store.watch(ref, "", 0, 5.0)
    token = (await anext(events)).resume_token
    await events.aclose()  # type: ignore[attr-defined]
    for i in range(3 * LIMITS.events):
        await grow(store, ref, f"s{i}")
    await refused(OutOfRangeError, Reason.WATCH_COMPACTED, anext(store.watch(ref, "", 1, 5.0)))
    await refused(OutOfRangeError, Reason.WATCH_COMPACTED, anext(store.watch(ref, token, 0, 5.0)))
    await refused(OutOfRangeError, Reason.WATCH_COMPACTED, anext(store.watch(ref, "", 10_000, 5.0)))
    await refused(OutOfRangeError, Reason.WATCH_COMPACTED, anext(store.watch(ref, "otherlife.5-5", 0, 5.0)))
    oldest = store.watch(ref, "", 0, 5.0)
    assert (await anext(oldest)).position.revision > 1
    await oldest.aclose()  # type: ignore[attr-defined]
