"""Events as a watcher asked for them: of some kinds; and those that came while it was busy, together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Container
from dataclasses import replace
from typing import Final, TypeVar

from katsura.domain.trees import EventKind
from katsura.state.watching import Event

T = TypeVar("T")

_ALWAYS: Final = (EventKind.HEARTBEAT, EventKind.TREE_DELETED, EventKind.TREE_LEFT)
_LEFT_OUT_MAX: Final = 1024
"""Commits that are left out before a heartbeat tells how far they are."""


async def of_kinds(events: AsyncGenerator[Event, None], kinds: Container[EventKind]) -> AsyncGenerator[Event, None]:
    """`events` of `kinds`, and those that end a tree. Heartbeats with their tokens tell how far the others are, so that
    a watch that is resumed does not begin before events that nobody keeps any more."""
    left_out: dict[str, Event] = {}
    count = 0
    try:
        async for event in events:
            always = event.kind in _ALWAYS
            if always or event.kind in kinds:
                left_out.pop(event.tree_id, None)
            else:
                left_out[event.tree_id] = event
                count += 1
            if event.kind is EventKind.HEARTBEAT or count == _LEFT_OUT_MAX:
                for last in left_out.values():
                    yield replace(last, kind=EventKind.HEARTBEAT, branch="", node_ids=())
                left_out, count = {}, 0
            if always or event.kind in kinds:
                yield event
    finally:
        await events.aclose()


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
