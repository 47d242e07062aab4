"""Events for a watcher that falls behind: those that came while it was busy, together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def gathered(events: AsyncGenerator[T, None], most: int) -> AsyncIterator[list[T]]:
    """`events` in order, as lists of those that came since the last list was taken, at most `most` in each.

    What `events` raises is raised after all that came before it.
    """
    if most <= 1:
        async for event in events:
            yield [event]
        return
    come: list[T] = []
    changed, room = asyncio.Event(), asyncio.Event()

    async def take() -> None:
        async for event in events:
            come.append(event)
            changed.set()
            if len(come) == most:
                room.clear()
                await room.wait()

    taking = asyncio.get_running_loop().create_task(take())
    taking.add_done_callback(lambda _: changed.set())
    try:
        while True:
            await changed.wait()
            if come:
                batch, come[:] = come[:], []
                room.set()
                if not taking.done():
                    changed.clear()
                yield batch
            else:
                taking.result()
                return
    finally:
        taking.cancel()
        await asyncio.wait((taking,))
        await events.aclose()
