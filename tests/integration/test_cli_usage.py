"""`katsura tree usage`, `tree freeze` and `key quota` against a real memory process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.cli.main import run
from katsura.domain.errors import FailedPreconditionError, Reason, ResourceExhaustedError
from katsura.domain.ids import TenantId
from katsura.rpc.clock import SystemClock
from katsura.sdk import MemoryClient, connect
from katsura.sdk.memory import step
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore
from katsura.testing.process import memory_process
from katsura.testing.store import EmbeddedStore


@dataclass(frozen=True)
class Place:
    store_url: str
    address: str
    key: str


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    with EmbeddedStore() as server:
        store = await Store.open(server.url)
        key = await RedisTenantStore(store, SystemClock()).create_key(TenantId("acme"))
        await store.close()
        more = {"KATSURA_MEMORY_COLD_FOLDER": str(tmp_path / "cold")}
        async with memory_process(server, "internal-secret", tmp_path / "log", more) as process:
            yield Place(server.url, process.address, key.secret)


async def katsura(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = await asyncio.to_thread(run, words, {"COLUMNS": "200"})
    said = capsys.readouterr()
    return status, said.out + said.err


async def test_usage_is_shown_beside_quotas_that_then_hold(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    direct = ("--memory", place.address, "--api-key", place.key)
    store = ("--redis", place.store_url)
    assert "no quotas of its own" in (await katsura(capsys, "key", "quota", "acme", *store))[1]
    status, said = await katsura(
        capsys, "key", "quota", "acme", "--nodes", "2", "--requests-per-minute", "1000", *store
    )
    assert (status, "requests per minute  1000" in said, "trees                no limit" in said) == (0, True, True)
    assert (await katsura(capsys, "key", "quota", "acme", "--nodes", "-1", *store))[0] != 0
    async with connect(place.address, api_key=place.key) as connection:
        memory = MemoryClient(connection)
        await memory.create_tree(tree_id="trip")
        cost = tree_pb.Cost(prompt_tokens=100, micros=2_500_000)
        await memory.grow("trip", [step("assistant", "a", agent_id="ada", cost=cost), step("user", "b")])
        with pytest.raises(ResourceExhaustedError) as caught:
            await memory.grow("trip", [step("user", "c")])
        assert caught.value.reason is Reason.QUOTA_EXCEEDED
    status, said = await katsura(capsys, "tree", "usage", *direct)
    assert status == 0
    assert "nodes  2 of 2" in said
    assert "ada" in said
    assert "2.5" in said
    _, said = await katsura(capsys, "tree", "usage", "trip", "--json", *direct)
    assert json.loads(said)["agents"][0]["promptTokens"] == "100"
    status, said = await katsura(capsys, "tree", "usage", "nowhere", *direct)
    assert (status != 0, "does not exist" in said) == (True, True)
    await katsura(capsys, "key", "quota", "acme", "--clear", *store)
    assert json.loads((await katsura(capsys, "key", "quota", "acme", "--json", *store))[1]) is None


async def test_a_tree_is_frozen_and_comes_back(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    direct = ("--memory", place.address, "--api-key", place.key)
    async with connect(place.address, api_key=place.key) as connection:
        memory = MemoryClient(connection)
        await memory.create_tree(tree_id="trip")
        await memory.grow("trip", [step("user", "a")])
        status, said = await katsura(capsys, "tree", "freeze", "trip", *direct)
        assert (status, "cold now" in said) == (0, True)
        assert [tree.cold for tree in (await memory.list_trees()).trees] == [True]
        assert "every hash holds" in (await katsura(capsys, "tree", "verify", "trip", *direct))[1]
        assert [tree.cold for tree in (await memory.list_trees()).trees] == [False]


async def test_trees_that_stand_on_each_other_come_back_as_they_were(place: Place) -> None:
    async with connect(place.address, api_key=place.key) as connection:
        memory = MemoryClient(connection)
        await memory.create_tree(tree_id="parent")
        await memory.grow("parent", [step("user", "before the fork")])
        await memory.fork("parent", new_tree_id="child")
        await memory.grow("child", [step("assistant", "after the fork")])
        before = await memory.assemble_context("child", budget_tokens=1000)
        for name in ("parent", "child", "parent"):
            assert await memory.freeze_tree(name)
        after = await memory.assemble_context("child", budget_tokens=1000)
        assert list(after.segments) == list(before.segments)
        assert (await memory.get_tree("child")).tree.origin.tree_id == "parent"
        await memory.freeze_tree("parent")
        with pytest.raises(FailedPreconditionError):
            await memory.delete_tree("parent")
        await memory.delete_tree("child")
        await memory.delete_tree("parent")
