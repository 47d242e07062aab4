"""What the functions of memory trees keep in the store, beyond what every store of trees promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from katsura.domain.trees import TreePolicy, request_of
from katsura.state import keys
from katsura.state.archive import ArchivedNode
from katsura.state.connect import Store
from katsura.state.tree_records import content_hash
from katsura.state.trees import Limits
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import NEW, NO_REQUEST, new_ref, step

REPLAYS = 32


@pytest.fixture
async def connection() -> AsyncIterator[Store]:
    with EmbeddedStore("no") as server:
        connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
        yield connection
        await connection.close()


async def test_remembered_requests_are_dropped_some_at_a_time_and_the_newest_never(connection: Store) -> None:
    store, ref = RedisTreeStore(connection, Limits(replays=REPLAYS)), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    kept = []
    for i in range(2 * REPLAYS):
        await store.grow(ref, "", i, [step(f"s{i}")], True, request_of(f"r{i}", "grow", i))
        kept.append(await connection.command("HLEN", keys.tree(ref.tenant, ref.tree, "replays")))
        assert kept[i] == await connection.command("LLEN", keys.tree(ref.tenant, ref.tree, "order"))
    assert (min(kept[REPLAYS:]), max(kept)) == (REPLAYS, REPLAYS + REPLAYS // 16)
    for i in range(REPLAYS, 2 * REPLAYS):
        again = await store.grow(ref, "", i, [step(f"s{i}")], True, request_of(f"r{i}", "grow", i))
        assert again.node_ids == (i + 1,)


async def test_jumps_are_those_of_a_skew_binary_list_on_every_branch(connection: Store) -> None:
    store, ref = RedisTreeStore(connection, Limits()), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    for branch, at in (("main", 0), ("a", 100), ("b", 37)):
        if branch != "main":
            await store.fork(ref, "main", at, branch, NO_REQUEST)
        await store.grow(ref, branch, at, [step(f"{branch}{i}") for i in range(150)], True, NO_REQUEST)
        await store.grow(ref, branch, None, [step(f"{branch} alone")], True, NO_REQUEST)
    found = await connection.command("HGETALL", keys.tree(ref.tenant, ref.tree, "links"))
    links = {int(node): [int(n) for n in link.split()[:3]] for node, link in zip(found[::2], found[1::2], strict=True)}
    links[0] = [0, 0, 0]
    assert len(links) == 1 + 3 * 151
    for parent, length, jump in (links[node] for node in links if node):
        first, second = links[parent][2], links[links[parent][2]][2]
        spans = links[parent][1] - links[first][1], links[first][1] - links[second][1]
        assert length == links[parent][1] + 1
        assert jump == (second if spans[0] == spans[1] else parent)


async def test_token_ids_live_as_long_as_their_tree(connection: Store) -> None:
    store, ref = RedisTreeStore(connection, Limits()), new_ref()
    await store.create(ref, replace(NEW, policy=TreePolicy(raw_token_limit=50, ttl_s=600)), NO_REQUEST)
    await store.grow(ref, "", None, [step("a")], True, NO_REQUEST)
    await store.attach(ref, "digest", {1: [7]})
    key = keys.tree(ref.tenant, ref.tree, "tokens:digest")
    await connection.command("PEXPIRE", key, 1000)
    await store.grow(ref, "", None, [step("b")], True, NO_REQUEST)
    assert 1000 < await connection.command("PTTL", key) <= 600_000


async def test_steps_are_chained_to_what_is_there_where_another_process_made_the_tree_anew(connection: Store) -> None:
    one, other = RedisTreeStore(connection, Limits()), RedisTreeStore(connection, Limits())
    ref = new_ref()
    await one.create(ref, NEW, NO_REQUEST)
    await one.grow(ref, "", None, [step("old")], True, NO_REQUEST)
    await other.drop(ref)
    await other.create(ref, NEW, NO_REQUEST)
    await other.grow(ref, "", None, [step("new")], True, NO_REQUEST)
    await one.grow(ref, "", None, [step("on it")], True, NO_REQUEST)
    nodes = [part async for part in one.dump(ref) if isinstance(part, ArchivedNode)]
    assert nodes[1].content_hash == content_hash(nodes[0].content_hash, nodes[1].record)


async def test_a_repeated_request_writes_so_that_its_answer_waits_for_what_it_repeats(connection: Store) -> None:
    store, ref, request = RedisTreeStore(connection, Limits()), new_ref(), request_of("r", "grow")
    await store.create(ref, NEW, NO_REQUEST)
    for again in (False, True):
        before = (await connection.client.info("persistence"))["rdb_changes_since_last_save"]
        await store.grow(ref, "", None, [step("a")], True, request)
        written = (await connection.client.info("persistence"))["rdb_changes_since_last_save"] - before
        assert written >= 1, again
