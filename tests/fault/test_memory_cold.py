"""Cold trees under kill -9: a process that is killed while trees go out and come back loses none of them."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from katsura.domain.errors import KatsuraError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

TOKEN = "internal-secret"
TREES, STEPS, KILLS = 4, 300, 4


def client_of(connection: Connection) -> MemoryClient:
    call = CallContext(Tenant(TenantId("cold"), bytes(32)), internal=True)
    return MemoryClient(connection.acting_for(call, timeout_s=60))


async def churn(memory: MemoryClient, rng: random.Random, moves: asyncio.Semaphore) -> None:
    """Move trees out and touch them, until the process is gone; `moves` counts."""
    while True:
        name = f"t{rng.randrange(TREES)}"
        try:
            if rng.random() < 0.5:
                await memory.freeze_tree(name)
            else:
                await memory.get_path(name, page_size=1)
        except KatsuraError:
            return
        moves.release()


@pytest.mark.timeout(300)
async def test_trees_survive_kills_while_they_move(tmp_path: Path) -> None:
    rng = random.Random(7)
    with EmbeddedStore() as server:
        environment = {
            "KATSURA_STORE_URL": server.url,
            "KATSURA_INTERNAL_TOKEN": TOKEN,
            "KATSURA_MEMORY_COLD_FOLDER": str(tmp_path / "cold"),
        }
        digests: dict[str, bytes] = {}
        for life in range(KILLS + 1):
            environment["KATSURA_LISTEN"] = f"unix:{server.folder}/{life}.sock"
            async with ServedProcess("katsura.memory", environment, tmp_path / f"log-{life}") as process:
                channel = open_channel(process.address)
                memory = client_of(Connection(channel, internal_token=TOKEN))
                for i in range(TREES):
                    name = f"t{i}"
                    if not life:
                        await memory.create_tree(tree_id=name)
                        steps = [step("user", f"{name} says {k}, and more than that") for k in range(STEPS)]
                        for at in range(0, STEPS, 100):
                            await memory.grow(name, steps[at : at + 100])
                    found = await memory.verify_tree(name)
                    assert (found.node_count, list(found.mismatches)) == (STEPS, [])
                    assert digests.setdefault(name, found.root_digest) == found.root_digest
                if life < KILLS:
                    moves = asyncio.Semaphore(0)
                    moving = [asyncio.create_task(churn(memory, rng, moves)) for _ in range(3)]
                    for _ in range(rng.randrange(4, 16)):
                        await moves.acquire()
                    await process.kill()
                    await asyncio.gather(*moving)
                await channel.close()
