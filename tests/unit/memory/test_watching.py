"""Events that travel together: none lost, none late, in order, and never more than asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from katsura.domain.ids import NodeId
from katsura.domain.trees import EventKind
from katsura.memory.watching import gathered, of_kinds
from katsura.state.watching import Event, Position


async def counted(upto: int, ended: list[bool]) -> AsyncGenerator[int, None]:
    try:
        for number in range(upto):
            yield number
    finally:
        ended.append(True)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 100])
async def test_all_events_come_once_and_in_order_and_never_too_many_together(most: int) -> None:
    lists = [batch async for batch in gathered(counted(20, []), most)]
    assert [event for batch in lists for event in batch] == list(range(20))
    assert max(map(len, lists)) == max(1, min(most, 20))


async def test_an_event_that_comes_alone_is_not_kept_back() -> None:
    come: asyncio.Queue[str] = asyncio.Queue()

    async def events() -> AsyncGenerator[str, None]:
        while True:
            yield await come.get()

    async with aclosing(gathered(events(), 8)) as lists:
        for name in "abc":
            come.put_nowait(name)
            assert await anext(lists) == [name]
        for name in "de":
            come.put_nowait(name)
        await asyncio.sleep(0)
        assert [*await anext(lists), *([] if come.empty() else await anext(lists))] == ["d", "e"]


async def test_an_error_comes_after_the_events_before_it() -> None:
    async def events() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise LookupError("gone")

    lists = gathered(events(), 8)
    seen = await anext(lists)
    while len(seen) < 2:
        seen += await anext(lists)
    assert seen == [1, 2]
    with pytest.raises(LookupError, match="gone"):
        await anext(lists)


async def test_who_leaves_early_ends_what_is_read() -> None:
    ended: list[bool] = []
    async with aclosing(gathered(counted(1000, ended), 4)) as lists:
        await anext(lists)
    assert ended == [True]


def event(kind: EventKind, revision: int, tree_id: str = "t") -> Event:
    return Event(kind, Position(revision, "life"), "main", (NodeId(revision),), f"life.{revision}-1", tree_id)


async def filtered(*events: Event) -> list[tuple[EventKind, str, str]]:
    async def told() -> AsyncGenerator[Event, None]:
        for each in events:
            yield each

    found = of_kinds(told(), {EventKind.COMPRESSED})
    return [(each.kind, each.tree_id, each.resume_token) async for each in found]


async def test_only_kinds_that_are_asked_for_come_and_heartbeats_tell_how_far_the_others_are() -> None:
    beat = Event(EventKind.HEARTBEAT, Position(0, "life"), resume_token="life.0-0")
    grown, other = event(EventKind.GROWN, 2), event(EventKind.GROWN, 5, "u")
    compressed, deleted = event(EventKind.COMPRESSED, 3), event(EventKind.TREE_DELETED, 4)
    assert await filtered(grown, other, compressed, beat, beat, deleted) == [
        (EventKind.COMPRESSED, "t", "life.3-1"),
        (EventKind.HEARTBEAT, "u", "life.5-1"),
        (EventKind.HEARTBEAT, "", "life.0-0"),
        (EventKind.HEARTBEAT, "", "life.0-0"),
        (EventKind.TREE_DELETED, "t", "life.4-1"),
    ]


async def test_a_watch_that_leaves_much_out_says_so_without_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("katsura.memory.watching._LEFT_OUT_MAX", 3)
    found = await filtered(*(event(EventKind.GROWN, revision) for revision in range(1, 8)))
    assert found == [(EventKind.HEARTBEAT, "t", "life.3-1"), (EventKind.HEARTBEAT, "t", "life.6-1")]
