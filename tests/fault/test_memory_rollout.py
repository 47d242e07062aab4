"""A rollout: services of two versions, each with its own functions, on one store, forth and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import katsura
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step
from katsura.state.connect import Store
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_load import TreeLoad

TOKEN = "internal-secret"
CALL = CallContext(Tenant(TenantId("acme"), bytes(32)), internal=True)
SAVE = "local function save_branch(t, branch)\n"
LOAD = "  local branch = cjson.decode(text)\n"
MARK = "  branch.mark = 1\n  redis.call('HSET', t.meta, 'marked ' .. branch.name, 1)\n"
CHECK = "  if not branch.mark and redis.call('HEXISTS', t.meta, 'marked ' .. name) == 1 then error('lost') end\n"


def next_version(folder: Path) -> Path:
    """This version, but for one thing: its functions keep a mark with every branch that they write, and refuse a branch
    that had one and lost it. A folder for PYTHONPATH."""
    here = Path(katsura.__file__).parent
    state = folder / "katsura" / "state"
    functions = state / "functions"
    functions.mkdir(parents=True)
    for source, target in ((here, folder / "katsura"), (here / "state", state)):
        for path in source.iterdir():
            if path.name not in {"state", "functions", "__pycache__"}:
                (target / path.name).symlink_to(path)
    for path in (here / "state" / "functions").iterdir():
        text = path.read_text()
        if path.name == "memory_1_tree.lua":
            assert text.count(SAVE) == text.count(LOAD) == 1
            text = text.replace(SAVE, SAVE + MARK).replace(LOAD, LOAD + CHECK)
        (functions / path.name).write_text(text)
    return folder


@asynccontextmanager
async def version(
    name: str, server: EmbeddedStore, folder: Path, python_path: Path | None = None
) -> AsyncIterator[tuple[ServedProcess, MemoryClient]]:
    environment = {
        "KATSURA_LISTEN": f"unix:{server.folder}/{name}.sock",
        "KATSURA_STORE_URL": server.url,
        "KATSURA_INTERNAL_TOKEN": TOKEN,
    }
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    async with ServedProcess("katsura.memory", environment, folder / f"{name}.log") as process:
        channel = open_channel(process.address)
        yield process, MemoryClient(Connection(channel, internal_token=TOKEN, call=CALL))
        await channel.close()


async def test_two_versions_serve_the_same_trees_forth_and_back_and_lose_nothing(tmp_path: Path) -> None:
    newer = next_version(tmp_path / "newer")
    with EmbeddedStore("always") as server:
        async with (
            version("old", server, tmp_path) as (old_process, old),
            version("new", server, tmp_path, newer) as (new_process, new),
        ):
            load = TreeLoad([old], seed=1, writers=4)

            async def restart_both() -> None:
                await asyncio.gather(old_process.kill(), new_process.kill())
                await asyncio.gather(old_process.start(), new_process.start())

            await load.through(1, lambda: asyncio.to_thread(server.restart))
            load.clients = [old, new]
            await load.through(2, restart_both)
            load.clients = [new]
            await load.through(1, lambda: asyncio.to_thread(server.restart))
            load.clients = [new, old]
            await load.through(1, lambda: asyncio.to_thread(server.restart))
            load.clients = [old]
            await load.through(1, restart_both)

            store = await Store.open(server.url)
            libraries = await store.client.function_list("katsura_memory_*")
            await store.close()
            assert len(libraries) == 2


async def test_a_write_repeated_to_another_version_is_the_same_write(tmp_path: Path) -> None:
    newer = next_version(tmp_path / "newer")
    with EmbeddedStore("always") as server:
        async with (
            version("old", server, tmp_path) as (_, old),
            version("new", server, tmp_path, newer) as (_, new),
        ):
            for first, second, tree in ((old, new, "t1"), (new, old, "t2")):
                for memory in (first, second):
                    await memory.create_tree(tree_id=tree, request_id="c")
                grown = [
                    await memory.grow(tree, [step("user", "once")], expected_head=0, request_id="g")
                    for memory in (first, second)
                ]
                assert grown[0] == grown[1]
                assert len(await first.get_whole_path(tree)) == 1
