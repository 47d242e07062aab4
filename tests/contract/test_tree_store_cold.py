"""Cold trees: one suite for the in-memory twin and a real Valkey with a folder of objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from katsura.domain.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    KatsuraError,
    NotFoundError,
    Reason,
)
from katsura.domain.ids import TreeId
from katsura.domain.trees import EventKind, Request
from katsura.domain.usage import Usage
from katsura.domain.work import WorkKind
from katsura.state import keys
from katsura.state.connect import Arg, Store
from katsura.state.objects import FolderObjects
from katsura.state.trees import Event, TreeRef, TreeStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.state.usage_redis import RedisUsageStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_suite import LIMITS, NEW, NO_REQUEST, compress, contents, grow, new_ref, refused, revise, step


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore, tmp_path: Path) -> AsyncIterator[TreeStore]:
    if request.param == "twin":
        yield TwinTreeStore(LIMITS)
        return
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield RedisTreeStore(connection, LIMITS, objects=FolderObjects(tmp_path))
    await connection.close()


@pytest.fixture
async def valkey(server: EmbeddedStore) -> AsyncIterator[Store]:
    connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
    yield connection
    await connection.close()


async def grown(store: TreeStore, ref: TreeRef) -> None:
    """Branches, a summary, a hint and a client's step id."""
    await grow(store, ref, "a", "b")
    await compress(store, ref)
    await grow(store, ref, "c")
    await revise(store, ref, 2)
    await store.grow(ref, "", None, [step("d", client_step_id="d1", agent_id="ada")], True, NO_REQUEST)


def folders(place: Path) -> list[Path]:
    return list(place.iterdir())


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def listed(store: TreeStore, ref: TreeRef) -> list[tuple[str, bool]]:
    return [(tree.tree_id, tree.cold) for tree in (await store.trees(ref.tenant, 10, ""))[0]]


async def test_a_tree_is_moved_out_and_comes_back_when_it_is_touched(store: TreeStore, ref: TreeRef) -> None:
    await grown(store, ref)
    tree, branches = await store.read(ref)
    before = [part async for part in store.dump(ref)]
    counted = await store.counted(ref)
    assert await store.freeze(ref)
    assert await listed(store, ref) == [("tree", True)]
    assert await contents(store, ref) == ["a", "b", "d"]
    assert await listed(store, ref) == [("tree", False)]
    now, same = await store.read(ref)
    assert (now.revision, same) == (tree.revision + 1, branches)
    after = [part async for part in store.dump(ref)]
    assert after[1:] == before[1:]
    assert await store.counted(ref) == counted


async def test_every_kind_of_touch_brings_a_tree_back(store: TreeStore, ref: TreeRef) -> None:
    await grown(store, ref)
    await store.freeze(ref)
    again = await store.grow(ref, "", None, [step("d", client_step_id="d1", agent_id="ada")], True, NO_REQUEST)
    assert again.merged == (True,)
    await store.freeze(ref)
    await store.fork(ref, "", 0, "f", NO_REQUEST)
    await store.freeze(ref)
    await refused(AlreadyExistsError, Reason.TREE_EXISTS, store.create(ref, NEW, NO_REQUEST))
    await store.freeze(ref)
    copy = TreeRef(ref.tenant, TreeId("copy"))
    await store.restore(copy, store.dump(ref))
    await store.freeze(ref)
    await refused(AlreadyExistsError, Reason.TREE_EXISTS, store.restore(ref, store.dump(copy)))
    await store.freeze(ref)
    await store.drop(ref)
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.read(ref))
    assert await listed(store, ref) == [("copy", False)]


async def test_a_repeated_create_finds_its_tree_in_the_cold(store: TreeStore) -> None:
    ref, request = new_ref(), Request("r", "d" * 32)
    made = await store.create(ref, NEW, request)
    await store.freeze(ref)
    assert await store.create(ref, NEW, request) == made


async def test_watching_goes_on_where_it_was(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    seen = (await store.read(ref))[0].revision
    await store.freeze(ref)

    async def first() -> Event:
        async for event in store.watch(ref, "", seen, 5.0):
            return event
        raise AssertionError("it ended")

    event = await first()
    assert (event.kind, event.position.revision) == (EventKind.TREE_UPDATED, seen + 1)


async def test_trees_with_tasks_a_lease_or_a_time_to_live_stay(store: TreeStore, ref: TreeRef) -> None:
    await grow(store, ref, "a")
    await store.schedule(ref, WorkKind.COMPRESS, "", 0, "")
    assert not await store.freeze(ref)
    brief = new_ref()
    await store.create(brief, replace(NEW, policy=replace(NEW.policy, ttl_s=3600)), NO_REQUEST)
    assert not await store.freeze(brief)
    leased = new_ref()
    await store.create(leased, NEW, NO_REQUEST)
    token = (await store.lease(leased, "", "one", 3_600_000)).lease_token
    assert not await store.freeze(leased)
    await store.release_lease(leased, "", token)
    assert await store.freeze(leased)
    assert await contents(store, ref) == ["a"]
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.freeze(new_ref()))


async def test_tokens_of_claims_rise_over_the_cold(store: TreeStore, ref: TreeRef) -> None:
    tokens = []
    for text in ("a", "b"):
        await grow(store, ref, text)
        await store.schedule(ref, WorkKind.COMPRESS, "", 0, "")
        (item,) = await store.claim(ref, WorkKind.UNSPECIFIED, "w", 1, 60_000)
        tokens.append(item.token)
        await compress(store, ref)
        assert await store.claim(ref, WorkKind.UNSPECIFIED, "w", 1, 60_000) == ()
        if not await store.freeze(ref):  # the claim's own task is in the way until its lease has ended
            return
    assert tokens == sorted(set(tokens))


async def test_a_tree_that_changes_while_it_is_written_down_stays(valkey: Store, tmp_path: Path) -> None:
    ref, objects = new_ref(), FolderObjects(tmp_path)
    other = RedisTreeStore(valkey, LIMITS)
    await other.create(ref, NEW, NO_REQUEST)

    class Late(FolderObjects):
        async def put(self, name: str, pieces: AsyncIterator[bytes]) -> str:
            digest = await super().put(name, pieces)
            await grow(other, ref, "meanwhile")
            return digest

    assert not await RedisTreeStore(valkey, LIMITS, objects=Late(tmp_path)).freeze(ref)
    assert files(tmp_path) == []
    store = RedisTreeStore(valkey, LIMITS, objects=objects)
    assert await store.freeze(ref)
    assert await contents(store, ref) == ["meanwhile"]


async def test_sums_follow_a_tree_out_and_back(valkey: Store, tmp_path: Path) -> None:
    added: list[Usage] = []
    store = RedisTreeStore(valkey, LIMITS, lambda _, usage: added.append(usage), FolderObjects(tmp_path))
    ref = new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a")
    await store.freeze(ref)
    assert sum(added, start=Usage()) == Usage()
    assert (await store.counted(ref)).usage == sum(added, start=Usage())


async def test_an_object_that_was_changed_or_lost_is_told_and_the_tree_stays_cold(
    valkey: Store, tmp_path: Path
) -> None:
    store, ref = RedisTreeStore(valkey, LIMITS, objects=FolderObjects(tmp_path)), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a")
    await store.freeze(ref)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"goal"', b'"gaol"'))
    with pytest.raises(KatsuraError, match="not a line of an archive"):
        await store.read(ref)
    path.write_bytes(whole.replace(b"the cheapest hotel", b"the dearest! hotel"))
    with pytest.raises(DataLossError, match="not as it was written"):
        await store.read(ref)
    path.write_bytes(whole + b" ")
    with pytest.raises(DataLossError, match="not as it was written"):
        await store.read(ref)
    path.unlink()
    with pytest.raises(DataLossError, match="mount the folder"):
        await store.read(ref)
    assert await listed(store, ref) == [("tree", True)]
    path.write_bytes(whole)
    assert await contents(store, ref) == ["a"]


async def test_nobody_who_looks_for_tasks_or_counts_brings_a_tree_back(valkey: Store, tmp_path: Path) -> None:
    store, ref = RedisTreeStore(valkey, LIMITS, objects=FolderObjects(tmp_path)), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await store.freeze(ref)
    assert await store.claim_any(ref.tenant, WorkKind.UNSPECIFIED, "w", 9, 60_000) == ()
    assert (await RedisUsageStore(valkey).recount(ref.tenant)).usage == Usage()
    assert await listed(store, ref) == [("tree", True)]


async def test_a_name_of_any_length_has_its_folder_and_what_is_not_there_has_none(
    valkey: Store, tmp_path: Path
) -> None:
    store = RedisTreeStore(valkey, LIMITS, objects=FolderObjects(tmp_path))
    await refused(NotFoundError, Reason.TREE_NOT_FOUND, store.freeze(TreeRef(new_ref().tenant, TreeId(""))))
    assert folders(tmp_path) == []
    ref = TreeRef(new_ref().tenant, TreeId(f"a{':' * 126}z"))
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a")
    assert await store.freeze(ref)
    assert await contents(store, ref) == ["a"]


async def test_without_a_place_for_objects_nothing_is_moved(valkey: Store) -> None:
    store, ref = RedisTreeStore(valkey, LIMITS), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await refused(FailedPreconditionError, Reason.COLD_UNAVAILABLE, store.freeze(ref))


async def test_two_processes_that_touch_a_tree_bring_it_back_once(valkey: Store, tmp_path: Path) -> None:
    stores = [RedisTreeStore(valkey, LIMITS, objects=FolderObjects(tmp_path)) for _ in range(2)]
    ref = new_ref()
    await stores[0].create(ref, NEW, NO_REQUEST)
    await grow(stores[0], ref, *"abcdefgh")
    await stores[0].freeze(ref)
    found = await asyncio.gather(*(contents(store, ref) for store in stores * 4))
    assert found == [list("abcdefgh")] * 8
    assert (await stores[0].read(ref))[0].revision == 3


async def test_what_a_thaw_that_died_left_behind_is_in_nobodys_way(
    valkey: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.cold_redis.TAKEN_OVER_MS", 1)
    store, ref = RedisTreeStore(valkey, LIMITS, objects=FolderObjects(tmp_path)), new_ref()
    await store.create(ref, NEW, NO_REQUEST)
    await grow(store, ref, "a", "b")
    await store.freeze(ref)
    meta = keys.tree(ref.tenant, ref.tree, "meta")
    name = f"{MEMORY_FUNCTIONS.name}_thaw_begin"
    await valkey.client.execute_command("FCALL", name, 1, meta, "dead", 1)  # type: ignore[no-untyped-call]
    await valkey.client.hset(keys.tree(ref.tenant, ref.tree, "nodes").decode(), "1", "half")
    assert await listed(store, ref) == [("tree", True)]
    assert await contents(store, ref) == ["a", "b"]


class Killed(BaseException):
    """What no cleanup of a process that was killed ever sees."""


class Mortal(RedisTreeStore):
    """Dies at a call to the store, before or after it was carried out."""

    left = 1 << 30
    after = False

    async def _answer(self, ref: TreeRef, function: str, *arguments: Arg, read_only: bool = False) -> list[Any]:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        answer = await super()._answer(ref, function, *arguments, read_only=read_only)
        if self.left <= 0:
            raise Killed
        return answer


@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_dies_at_any_step_loses_nothing(
    valkey: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr("katsura.state.cold_redis.TAKEN_OVER_MS", 0)
    objects = FolderObjects(tmp_path)
    heir, ref = RedisTreeStore(valkey, LIMITS, objects=objects), new_ref()
    await heir.create(ref, NEW, NO_REQUEST)
    await grown(heir, ref)
    whole = [part async for part in heir.dump(ref)][1:]
    died = {"freeze": 0, "thaw": 0}
    for what in died:
        for steps in range(1, 200):
            if what == "thaw":
                assert await heir.freeze(ref)
            mortal = Mortal(valkey, LIMITS, objects=objects)
            mortal.left, mortal.after = steps, after
            try:
                await (mortal.freeze(ref) if what == "freeze" else mortal.read(ref))
            except Killed:
                died[what] += 1
            else:
                break
            assert [part async for part in heir.dump(ref)][1:] == whole
    assert died["freeze"] >= 4
    assert died["thaw"] >= 6
    assert (await heir.read(ref))[0].node_count == 6
