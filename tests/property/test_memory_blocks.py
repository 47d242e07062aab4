"""Random lives of blocks: a plain dictionary, the twin and a real Valkey tell the same story."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from katsura.domain.blocks import Block, BlockOwner, BlockScope, Content
from katsura.domain.errors import KatsuraError
from katsura.domain.ids import TenantId
from katsura.domain.trees import request_of
from katsura.memory.blocks import Blocks
from katsura.state.blocks import BlockStore
from katsura.state.blocks_redis import BLOCK_FUNCTIONS, RedisBlockStore
from katsura.state.blocks_twin import TwinBlockStore
from katsura.state.connect import Store
from katsura.testing.store import EmbeddedStore

NAMES = ("a", "a/b", "a/c", "b")
operations = st.tuples(
    st.sampled_from(["put", "put", "put", "delete", "forget", "repeat"]),
    st.sampled_from(NAMES),
    st.integers(0, 3),
    st.one_of(st.none(), st.integers(0, 3)),
)
lives = st.lists(operations, max_size=25)
counter = itertools.count()


async def live(store: BlockStore, operations: list[tuple[str, str, int, int | None]]) -> list[object]:
    owner = BlockOwner(TenantId(f"t{next(counter)}"), BlockScope.TENANT)
    model: dict[str, tuple[int, bytes]] = {}
    log: list[object] = []
    for number, (kind, name, amount, expected) in enumerate(operations):
        version, value = model.get(name, (0, b""))
        content = Content(b"%d" % amount)
        try:
            if kind == "repeat":
                request = request_of(f"r{amount}", "put", amount)
                log.append(plain(await store.put(owner, "r", content, None, 0, request)))
            elif kind == "put":
                block = await store.put(owner, name, content, expected, 0, request_of(f"p{number}", "put"))
                assert expected in (None, version if value else 0)
                assert block.content == content
                assert block.version == (version if value == content.value else version + 1)
                model[name] = (block.version, content.value)
            else:
                forget = kind == "forget"
                was = await store.delete(owner, name, expected, forget, request_of(f"p{number}", "delete"))
                assert expected in (None, version if value else 0)
                assert was == bool(value)
                model[name] = (0 if forget else version + was, b"")
        except KatsuraError as error:
            log.append((error.reason, dict(error.metadata)))
    page = await Blocks(store).page(owner, "a", {}, "", 0, "")
    held = {name: value for name, (_, value) in model.items() if value}
    assert {b.name: b.content.value for b in page.blocks} == {n: v for n, v in held.items() if n.startswith("a")}
    for name in NAMES:
        history = await store.history(owner, name)
        assert [b.version for b in history] == list(range(model.get(name, (0, b""))[0], 0, -1))
        log.append([plain(b) for b in history])
    return log


def plain(block: Block) -> Block:
    """A block without its times, which two stores may tell differently."""
    return replace(block, create_ms=0, update_ms=0)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives)
def test_blocks_live_the_same_life_in_every_store(
    server: EmbeddedStore, operations: list[tuple[str, str, int, int | None]]
) -> None:
    async def both() -> None:
        connection = await Store.open(server.url, libraries=[BLOCK_FUNCTIONS])
        try:
            real = await live(RedisBlockStore(connection, 64), operations)
        finally:
            await connection.close()
        assert real == await live(TwinBlockStore(64), operations)

    asyncio.run(both())
