from __future__ import annotations

import asyncio

from katsura.domain.errors import UnavailableError
from katsura.gateway.deps import Background


async def test_what_a_request_leaves_behind_is_waited_for() -> None:
    background, done = Background(), []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(1)

    background.start("work", work())
    await background.finish(60)
    assert done == [1]
    await background.finish(60)


async def test_a_failure_is_nobodys_answer() -> None:
    background = Background()

    async def fail(error: Exception) -> None:
        raise error

    background.start("one", fail(UnavailableError("x")))
    background.start("two", fail(RuntimeError("bug")))
    await background.finish(60)


async def test_what_takes_too_long_is_cancelled() -> None:
    background, ended = Background(), asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background.start("forever", forever())
    await asyncio.sleep(0)
    await background.finish(0)
    assert ended.is_set()
