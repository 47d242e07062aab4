"""Watching memory trees: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from katsura.domain.errors import (
    OutOfRangeError,
    Reason,
)
from katsura.domain.trees import (
    EventKind,
)
from katsura.state.trees import Event, TreeRef, TreeStore
from katsura.testing.tree_suite import (
    LIMITS,
    NEW,
    NO_REQUEST,
    grow,
    refused,
    revise,
)


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


async def test_watchers_of_one_tree_hear_the_same_wherever_they_begin_and_however_slow(
    store: TreeStore, ref: TreeRef
) -> None:
    first = store.watch(ref, "", 0, 30.0)
    heard = await take(first, 1)
    for i in range(5):
        await grow(store, ref, f"early{i}")
    late, new = store.watch(ref, "", 3, 30.0), store.watch(ref, "", 6, 30.0)
    waiting = asyncio.ensure_future(take(new, 2))
    assert [e.position.revision for e in await take(late, 2)] == [4, 5]
    await grow(store, ref, "a")
    await grow(store, ref, "b")
    all_new = await waiting
    assert await take(late, 3) == [*(await take(first, 5))[-1:], *all_new]
    heard += await take(first, 2)
    assert heard[-2:] == all_new
    await first.aclose()  # type: ignore[attr-defined]
    await grow(store, ref, "c")
    assert await take(late, 1) == await take(new, 1), "the others hear on when the first one leaves"
    for events in (late, new):
        await events.aclose()  # type: ignore[attr-defined]
    again = store.watch(ref, "", all_new[-1].position.revision, 30.0)
    assert (await take(again, 1))[0].position.revision == all_new[-1].position.revision + 1
    await again.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_too_slow_for_what_is_kept_is_told_so(
    store: TreeStore, ref: TreeRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.tree_watch._TAIL_EVENTS", 2)
    events = store.watch(ref, "", 0, 30.0)
    await anext(events)
    for i in range(3 * LIMITS.events):
        await grow(store, ref, f"s{i}")
    await refused(OutOfRangeError, Reason.WATCH_COMPACTED, anext(events))


async def test_whoever_begins_to_watch_a_tree_made_anew_hears_nothing_of_the_one_before(
    store: TreeStore, ref: TreeRef
) -> None:
    """Though somebody still watches that one."""
    await grow(store, ref, "a")
    old = store.watch(ref, "", 1, 5.0)
    assert (await anext(old)).kind is EventKind.GROWN
    await store.drop(ref)
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "of the new one")
    new = store.watch(ref, "", 0, 5.0)
    assert [(e.kind, e.position.revision) for e in await take(new, 2)] == [
        (EventKind.TREE_CREATED, 1),
        (EventKind.GROWN, 2),
    ]
    await grow(store, ref, "and on")
    assert [(e.kind, e.position.revision) for e in await take(new, 1)] == [(EventKind.GROWN, 3)]
    assert (await anext(old)).kind is EventKind.TREE_DELETED
    for events in (old, new):
        await events.aclose()  # type: ignore[attr-defined]
