"""A served process's life, without a peer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from katsura.rpc.serve import ServeConfig, Server


async def test_work_that_lost_its_cancel_is_cancelled_again(tmp_path: Path) -> None:
    server = Server(ServeConfig("router", "r1", f"unix:{tmp_path}/r1", "secret"))
    begun, lost = asyncio.Event(), []

    async def work() -> None:
        while True:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append("the first one")

    await server.start()
    server.keep(work())
    await begun.wait()
    server.stop()
    async with asyncio.timeout(30):
        await server.run()
    assert lost
