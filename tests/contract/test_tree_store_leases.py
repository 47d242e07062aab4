"""Leases on branches: one suite for the in-memory twin and a real Valkey."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, Reason
from katsura.domain.trees import Hint, Request, Slot
from katsura.state.trees import Revised, TreeRef, TreeStore
from katsura.testing.tree_suite import NO_REQUEST, compress, contents, grow, refused, step

HOUR_MS = 3_600_000


def under(token: int, request_id: str = "") -> Request:
    return Request(request_id, "d" if request_id else "", token)


async def say(store: TreeStore, ref: TreeRef, text: str, request: Request = NO_REQUEST) -> int:
    return (await store.grow(ref, "", None, [step(text)], False, request)).node_ids[0]


async def held(call: Awaitable[Any], holder: str, head: int, reason: Reason = Reason.LEASE_HELD) -> None:
    with pytest.raises(ConflictError) as caught:
        await call
    assert caught.value.reason is reason
    assert caught.value.metadata == {"holder": holder, "branch": "main", "head": str(head)}


async def go_back(store: TreeStore, ref: TreeRef, after: int, request: Request) -> Revised:
    seen = await store.retreat(ref, "", None, after)
    hint = Hint(seen.branch.name, seen.branch.head, seen.restore_after, "no", "x", seen.previous_hint)
    return await store.revise(ref, seen, hint, 1, "", True, request)


async def test_a_leased_branch_takes_writes_of_its_holder_only(store: TreeStore, ref: TreeRef) -> None:
    first = await say(store, ref, "a")
    taken = await store.lease(ref, "", "one", HOUR_MS)
    assert (taken.head, taken.lease_holder, taken.lease_token > 0) == (first, "one", True)
    assert taken.lease_end_ms > HOUR_MS
    await held(say(store, ref, "b"), "one", first)
    await held(store.lease(ref, "", "two", HOUR_MS), "one", first)
    slots = [(Slot("k", "v"), 1)]
    await held(store.set_slots(ref, await store.slots(ref, ""), slots, NO_REQUEST), "one", first)
    await held(go_back(store, ref, 0, NO_REQUEST), "one", first)
    await say(store, ref, "b", under(taken.lease_token))
    await store.set_slots(ref, await store.slots(ref, ""), slots, under(taken.lease_token))
    assert await contents(store, ref) == ["a", "b"]
    assert (await store.read(ref))[1][0].lease_token == taken.lease_token


async def test_a_stale_holder_is_told_who_has_the_branch_and_where_it_is(store: TreeStore, ref: TreeRef) -> None:
    old = (await store.lease(ref, "", "one", 0)).lease_token
    head = await say(store, ref, "a", under(old))
    assert head, "a lease that ended, and was not taken over, is still good"
    new = (await store.lease(ref, "", "two", HOUR_MS)).lease_token
    assert new > old
    await held(say(store, ref, "late", under(old)), "two", head, Reason.LEASE_LOST)
    await held(store.renew_lease(ref, "", old, HOUR_MS), "two", head, Reason.LEASE_LOST)
    await held(store.release_lease(ref, "", old), "two", head, Reason.LEASE_LOST)
    again = await store.lease(ref, "", "two", HOUR_MS)
    await held(say(store, ref, "late", under(new)), "two", head, Reason.LEASE_LOST)
    assert await contents(store, ref) == ["a"]
    await say(store, ref, "b", under(again.lease_token))


async def test_a_branch_that_is_given_back_is_everybodys(store: TreeStore, ref: TreeRef) -> None:
    token = (await store.lease(ref, "", "one", HOUR_MS)).lease_token
    longer = await store.renew_lease(ref, "", token, 2 * HOUR_MS)
    assert longer.lease_end_ms > HOUR_MS
    for _ in range(2):
        assert (await store.release_lease(ref, "", token)).lease_holder == ""
    head = await say(store, ref, "a")
    await held(say(store, ref, "late", under(token)), "", head, Reason.LEASE_LOST)
    await held(store.renew_lease(ref, "", token, HOUR_MS), "", head, Reason.LEASE_LOST)


async def test_summaries_and_forks_ask_for_no_lease(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a", "b")
    await store.lease(ref, "", "one", HOUR_MS)
    assert (await compress(store, ref)).node.judgement is not None
    other, _ = await store.fork(ref, "", 0, "free", NO_REQUEST)
    assert other.lease_holder == ""
    await store.grow(ref, "free", None, [step("on")], False, NO_REQUEST)


async def test_a_lease_goes_on_on_the_branch_of_a_revise(store: TreeStore, ref: TreeRef) -> None:
    first = await say(store, ref, "a")
    await say(store, ref, "b")
    token = (await store.lease(ref, "", "one", HOUR_MS)).lease_token
    revised = await go_back(store, ref, first, under(token))
    assert (revised.branch.lease_holder, revised.branch.lease_token) == ("one", token)
    with pytest.raises(ConflictError) as caught:
        await say(store, ref, "c")
    assert caught.value.metadata["branch"] == revised.branch.name
    await say(store, ref, "c", under(token))
    await refused(FailedPreconditionError, Reason.BRANCH_NOT_WRITABLE, store.lease(ref, "main", "one", HOUR_MS))


async def test_a_repeated_request_is_answered_whatever_became_of_its_lease(store: TreeStore, ref: TreeRef) -> None:
    token = (await store.lease(ref, "", "one", HOUR_MS)).lease_token
    made = await say(store, ref, "a", under(token, "r"))
    await store.release_lease(ref, "", token)
    await store.lease(ref, "", "two", HOUR_MS)
    assert await say(store, ref, "a", under(token, "r")) == made
