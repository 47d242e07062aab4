"""Strict by replicas: a write is answered once they have it, so a fail-over to one of them loses nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from katsura.domain.errors import Reason, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Durability, Request, Step, TreePolicy
from katsura.state.connect import Store
from katsura.state.trees import Limits, NewStep, NewTree, TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore

REF = TreeRef(TenantId("acme"), TreeId("t"))
NOBODY = Request("", "")
Pair = tuple[EmbeddedStore, EmbeddedStore, Store]
QUICK = {"repl-diskless-sync-delay": "0"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def listening() -> Iterator[tuple[EmbeddedStore, str]]:
    """A server with a port, and that; where somebody took the port meanwhile, with another one."""
    server = None
    while server is None:
        port = free_port()
        try:
            server = EmbeddedStore("no", {"port": port, **QUICK}).__enter__()
        except RuntimeError as error:
            if "in use" not in str(error):
                raise
    try:
        yield server, port
    finally:
        server.close()


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    """A primary, its replica in step with it, and a connection to that. Neither syncs its disk: replicas alone last."""
    with listening() as (primary, port), EmbeddedStore("no", QUICK) as replica:
        follower = await Store.open(replica.url)
        await follower.client.execute_command("REPLICAOF", "127.0.0.1", port)  # type: ignore[no-untyped-call]
        leader = await Store.open(primary.url)
        async with asyncio.timeout(60):
            while not await leader.client.wait(1, 4000):  # a write was made by `open`
                continue
        await leader.close()
        yield primary, replica, follower
        await follower.close()


async def test_what_was_answered_is_on_the_replica_when_the_primary_dies(
    pair: Pair,
) -> None:
    primary, _, follower = pair
    store = await Store.open(primary.url, libraries=[MEMORY_FUNCTIONS], replicas=1)
    assert store.durability is Durability.STRICT
    trees = RedisTreeStore(store, Limits())
    await trees.create(REF, NewTree("", (), TreePolicy(), {}), NOBODY)
    for i in range(30):
        await trees.grow(REF, "", None, [NewStep(Step(f"{i}"), 5)], True, NOBODY)
    primary.kill()
    await store.close()
    with pytest.raises(UnavailableError, match="it is a replica"):
        await follower.refresh()
    await follower.client.execute_command("REPLICAOF", "NO", "ONE")  # type: ignore[no-untyped-call]
    path = await RedisTreeStore(follower, Limits()).path(REF, "", 0, 100, 1 << 20)
    assert [n.body.content for n in path.nodes if isinstance(n.body, Step)] == [f"{i}" for i in range(30)]


async def test_a_write_that_the_replica_did_not_confirm_is_not_answered_until_its_repetition_is(
    pair: Pair,
) -> None:
    primary, replica, _ = pair
    store = await Store.open(primary.url, libraries=[MEMORY_FUNCTIONS], replicas=1)
    trees = RedisTreeStore(store, Limits())
    await trees.create(REF, NewTree("", (), TreePolicy(), {}), NOBODY)
    request, steps = Request("once", "digest"), [NewStep(Step("said"), 5)]
    replica.freeze()
    for _ in range(2):  # the repetition finds it done, and still waits for the replica
        with pytest.raises(UnavailableError, match="0 of 1 replicas") as caught:
            await trees.grow(REF, "", None, steps, True, request)
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
    replica.thaw()
    grown = await trees.grow(REF, "", None, steps, True, request)
    assert grown.node_ids == (1,)
    assert len((await trees.path(REF, "", 0, 100, 1 << 20)).nodes) == 1
    await store.close()
