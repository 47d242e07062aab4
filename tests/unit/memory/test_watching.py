"""Events that travel together: none lost, none late, in order, and never more than asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from katsura.memory.watching import gathered


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
