"""Watchers of one tree in a process of their own: when each of them heard of each commit.

    python bench/trees/watchers.py ADDRESS KEY TREE COUNT LAST_REVISION

Prints `ready` once all of them hear, then JSON: for each watcher, by revision, seconds of the monotonic clock (one for
all processes of a machine).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from katsura.sdk.connection import connect
from katsura.sdk.memory import MemoryClient


async def watch(memory: MemoryClient, tree: str, last: int, hears: asyncio.Event) -> dict[int, float]:
    heard: dict[int, float] = {}
    async for event in memory.watch(tree):
        hears.set()
        if event.position.revision:
            assert event.position.revision not in heard, "an event came twice"
            heard[event.position.revision] = time.monotonic()
        if event.position.revision == last:
            break
    assert sorted(heard) == list(range(1, last + 1)), "a gap"
    return heard


async def main(address: str, key: str, tree: str, count: str, last: str) -> None:
    async with connect(address, api_key=key) as connection:
        marks = [asyncio.Event() for _ in range(int(count))]
        watches = [asyncio.create_task(watch(MemoryClient(connection), tree, int(last), mark)) for mark in marks]
        await asyncio.gather(*(mark.wait() for mark in marks))
        print("ready", flush=True)
        print(json.dumps(await asyncio.gather(*watches)))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
