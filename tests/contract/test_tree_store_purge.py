"""Deleting what a memory store keeps, on a real Valkey: all of it, nothing else, and again after a death."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from katsura.domain.errors import ConflictError, FailedPreconditionError, Reason, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.rpc.clock import SystemClock
from katsura.state import keys
from katsura.state.blocks_redis import BLOCK_FUNCTIONS
from katsura.state.connect import Store
from katsura.state.objects import FolderObjects
from katsura.state.purge import purge
from katsura.state.tenants import RedisTenantStore
from katsura.state.trees import TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NEW, NO_REQUEST, compress, grow

OpenStore = Callable[..., Awaitable[Store]]
ACME = TenantId("acme")
FOREIGN = {b"session:42": b"theirs", b"katsura": b"theirs", b"katsurax:{a/b}:meta": b"theirs"}


@pytest.fixture
def server() -> Iterator[EmbeddedStore]:
    """A server of each test's own: a purge looks at every key of a database."""
    with EmbeddedStore() as running:
        yield running


@pytest.fixture
async def open_store(server: EmbeddedStore) -> AsyncIterator[OpenStore]:
    opened: list[Store] = []

    async def make(database: int = 0) -> Store:
        libraries = (MEMORY_FUNCTIONS, BLOCK_FUNCTIONS)
        opened.append(await Store.open(f"{server.url}?db={database}", libraries=libraries))
        return opened[-1]

    yield make
    for store in opened:
        await store.close()


async def fill(store: Store, folder: Path, trees: int = 3) -> None:
    """Trees (one of them cold), a block, usage, a stored response, a tenant with a key, and keys of others."""
    objects = FolderObjects(folder)
    tenants, stores = RedisTenantStore(store, SystemClock()), RedisTreeStore(store, LIMITS, objects=objects)
    await tenants.create_key(ACME, "laptop")
    for number in range(trees):
        ref = TreeRef(ACME, TreeId(f"t{number}"))
        await stores.create(ref, NEW, NO_REQUEST)
        await grow(stores, ref, "a", "b")
        await compress(stores, ref)
    assert await stores.freeze(TreeRef(ACME, TreeId("t0")))
    client = store.client
    await client.hset(keys.usage("acme"), "trees", trees)
    await client.hset(keys.blocks("acme", "user", "ann", "values"), "color", b"1 0 0 0 0\nblue")
    await client.hset(keys.responses("acme", "t1"), "r1", "{}")
    await client.zadd(keys.work_index("acme"), {"t1": 5})
    await client.set(keys.requests("acme", 7), 3)
    await client.set(keys.COORDINATOR, "1 2 router-0")
    await client.hset(keys.lease_records("memory"), "m0", "1\n{}")
    await client.set(keys.program_affinity(b"salt", "p"), "{}")
    for name, value in FOREIGN.items():
        await client.set(name, value)


async def dump(store: Store) -> dict[bytes, bytes | None]:
    """Every key with its content, but for the one that is written to wait for the disk."""
    names = [name for name in await store.client.keys("*") if name != keys.BARRIER.encode()]
    return {bytes(name): await store.client.dump(name) for name in names}  # type: ignore[arg-type]


def cold_files(folder: Path) -> list[Path]:
    return list(folder.rglob("*.jsonl"))


async def test_everything_of_the_store_goes_and_nothing_of_anybody_else(open_store: OpenStore, tmp_path: Path) -> None:
    store, twin = await open_store(0), await open_store(1)
    await fill(store, tmp_path / "cold")
    await fill(twin, tmp_path / "twin")
    before, others = await dump(store), await dump(twin)
    assert cold_files(tmp_path / "cold")
    deleted = await purge(store, FolderObjects(tmp_path / "cold"), batch=7)
    after = await dump(store)
    assert deleted == len(before) - len(after) > 20
    assert after == {name: value for name, value in before.items() if not keys.is_of_store(name)}
    assert {b"katsura:tenants", b"katsura:api-keys", keys.COORDINATOR, *FOREIGN} <= set(after)
    assert not cold_files(tmp_path / "cold")
    assert await dump(twin) == others
    assert cold_files(tmp_path / "twin")


async def test_a_store_begins_anew_after_its_purge_with_the_keys_of_its_tenants(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = await open_store()
    tenants = RedisTenantStore(store, SystemClock())
    made = await tenants.create_key(ACME, "laptop")
    await fill(store, tmp_path)
    await purge(store, FolderObjects(tmp_path))
    tenant = await tenants.resolve(made.secret)
    assert tenant is not None
    assert tenant.tenant_id == ACME
    trees = RedisTreeStore(store, LIMITS)
    assert (await trees.trees(ACME, 100, ""))[0] == ()
    await trees.create(TreeRef(ACME, TreeId("t1")), NEW, NO_REQUEST)


class KilledError(Exception):
    """The process that purged is gone."""


@pytest.mark.parametrize("after", [1, 2, 4])
async def test_a_purge_that_died_is_ended_by_the_next_one(open_store: OpenStore, tmp_path: Path, after: int) -> None:
    store = await open_store()
    await fill(store, tmp_path)
    spared = {name for name in await dump(store) if not keys.is_of_store(name)}
    batches = 0

    def die(deleted: int) -> None:
        nonlocal batches
        batches += 1
        if batches == after:
            raise KilledError

    with pytest.raises(KilledError):
        await purge(store, FolderObjects(tmp_path), batch=5, told=die)
    await purge(store, FolderObjects(tmp_path), batch=5)
    assert set(await dump(store)) == spared
    assert not cold_files(tmp_path)
    assert await purge(store) == 0


async def test_cold_trees_are_not_forgotten_where_their_archive_is_not_named(
    open_store: OpenStore, tmp_path: Path
) -> None:
    store = await open_store()
    await fill(store, tmp_path)
    with pytest.raises(FailedPreconditionError, match=r"spec\.archive") as caught:
        await purge(store)
    assert caught.value.reason is Reason.COLD_UNAVAILABLE
    assert cold_files(tmp_path)
    assert await store.client.exists(keys.tree("acme", "t0", "cold"))


async def test_somebody_who_goes_on_writing_is_told_of(open_store: OpenStore, tmp_path: Path) -> None:
    store, writer = await open_store(), await open_store()
    await fill(store, tmp_path)
    trees = RedisTreeStore(writer, LIMITS)
    number = 0

    class Nobody(FolderObjects):
        """Somebody creates a tree each time that an object is deleted."""

        async def delete(self, name: str) -> None:
            nonlocal number
            number += 1
            await trees.create(TreeRef(ACME, TreeId(f"new{number}")), NEW, NO_REQUEST)
            record = {"object": "a/b.jsonl"}
            await writer.client.set(keys.tree("acme", f"new{number}", "cold"), str(record).replace("'", '"'))

    with pytest.raises(ConflictError, match="still serves there"):
        await purge(store, Nobody(tmp_path))


async def test_a_server_that_is_away_is_an_error_to_try_again(open_store: OpenStore, server: EmbeddedStore) -> None:
    store = await open_store()
    server.kill()
    with pytest.raises(UnavailableError):
        await purge(store)


def run_process(message: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    own = {"PATH": os.environ["PATH"], "KATSURA_PURGE_MESSAGE_FILE": str(message), **environ}
    line = [sys.executable, "-m", "katsura.memory.purge"]
    return subprocess.run(line, env=own, capture_output=True, text=True, timeout=120, check=False)


async def test_the_process_purges_and_says_so(open_store: OpenStore, server: EmbeddedStore, tmp_path: Path) -> None:
    store = await open_store()
    await fill(store, tmp_path / "cold")
    spared = {name for name in await dump(store) if not keys.is_of_store(name)}
    folder = str(tmp_path / "cold")
    done = run_process(tmp_path / "message", KATSURA_STORE_URL=server.url, KATSURA_MEMORY_COLD_FOLDER=folder)
    assert done.returncode == 0, done.stderr
    assert "nothing is left of the store" in done.stdout + done.stderr
    assert set(await dump(store)) == spared
    assert not (tmp_path / "message").exists()


@pytest.mark.parametrize("how", ["KATSURA_PURGE_SPARED", "KATSURA_PURGE_SPARED_URL"])
async def test_the_process_refuses_where_another_store_lives_too(
    open_store: OpenStore, server: EmbeddedStore, tmp_path: Path, how: str
) -> None:
    store = await open_store()
    await fill(store, tmp_path / "cold")
    before = await dump(store)
    said = {"KATSURA_PURGE_SPARED": f"h:6379/0,{server.socket_path}/0", "KATSURA_PURGE_SPARED_URL": server.url}
    done = run_process(tmp_path / "message", KATSURA_STORE_URL=server.url, **{how: said[how]})
    assert done.returncode == 1
    assert "another MemoryStore" in (tmp_path / "message").read_text()
    assert await dump(store) == before


def test_the_process_says_which_server_does_not_answer_and_no_password(tmp_path: Path) -> None:
    url = "redis://katsura:hunter2@127.0.0.1:1/0"
    done = run_process(tmp_path / "message", KATSURA_STORE_URL=url, KATSURA_STORE_WAIT_S="0")
    assert done.returncode == 1
    assert "does not answer" in (tmp_path / "message").read_text()
    assert "hunter2" not in (tmp_path / "message").read_text() + done.stderr + done.stdout


def test_the_process_says_what_is_wrong_with_its_environment(tmp_path: Path) -> None:
    done = run_process(tmp_path / "message", KATSURA_STORE="x")
    assert done.returncode == 1
    assert "KATSURA_STORE_URL: required" in (tmp_path / "message").read_text()
