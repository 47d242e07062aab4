"""One suite for every store of blocks: the in-memory twin and a real Valkey."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from katsura.domain.blocks import BlockOwner, BlockScope, Content
from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    KatsuraError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.ids import TenantId
from katsura.domain.trees import Request, request_of
from katsura.state import blocks_redis, blocks_twin
from katsura.state.blocks import HISTORY_MAX, BlockStore
from katsura.state.blocks_redis import BLOCK_FUNCTIONS, RedisBlockStore
from katsura.state.blocks_twin import TwinBlockStore
from katsura.state.connect import Store
from katsura.testing.store import EmbeddedStore

NO_REQUEST = Request("", "")
BIG = 1 << 30
HELLO = Content(b"Hello, W\xc3\xb6rld\n\x00", "text/plain", {"kind": "greeting"})
counter = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@pytest.fixture(params=["twin", "valkey"])
async def store(request: pytest.FixtureRequest, server: EmbeddedStore) -> AsyncIterator[BlockStore]:
    if request.param == "twin":
        yield TwinBlockStore(replays=4)
        return
    connection = await Store.open(server.url, libraries=[BLOCK_FUNCTIONS])
    yield RedisBlockStore(connection, replays=4)
    await connection.close()


@pytest.fixture
def owner() -> BlockOwner:
    return BlockOwner(TenantId(f"t{next(counter)}"), BlockScope.USER, "ada")


async def put(store: BlockStore, owner: BlockOwner, name: str, text: str = "x", ttl_ms: int = 0) -> int:
    content = Content(text.encode())
    return (await store.put(owner, name, content, None, ttl_ms, NO_REQUEST)).version


async def names(store: BlockStore, owner: BlockOwner, prefix: str = "", *words: str, size: int = 50) -> list[list[str]]:
    pages, after = [], ""
    while True:
        page = await store.page(owner, prefix, [w.encode() for w in words], after, size, BIG)
        pages.append([block.name for block in page.blocks])
        after = page.next_after
        if not after:
            return pages


async def refused(kind: type[KatsuraError], reason: Reason, attempt: object) -> KatsuraError:
    with pytest.raises(kind) as caught:
        await attempt  # type: ignore[misc]
    assert caught.value.reason is reason
    return caught.value


async def test_a_block_is_read_back_as_it_was_put(store: BlockStore, owner: BlockOwner) -> None:
    written = await store.put(owner, "a/b c", HELLO, None, 0, NO_REQUEST)
    assert (written.name, written.content, written.version, written.deleted) == ("a/b c", HELLO, 1, False)
    assert written.create_ms == written.update_ms > 0
    assert await store.get(owner, "a/b c") == written
    await refused(NotFoundError, Reason.BLOCK_NOT_FOUND, store.get(owner, "a/b"))


async def test_owners_and_tenants_do_not_see_each_others_blocks(store: BlockStore, owner: BlockOwner) -> None:
    await put(store, owner, "n")
    others = (
        BlockOwner(owner.tenant, BlockScope.USER, "bob"),
        BlockOwner(owner.tenant, BlockScope.AGENT, "ada"),
        BlockOwner(owner.tenant, BlockScope.TENANT),
        BlockOwner(TenantId("stranger"), BlockScope.USER, "ada"),
        BlockOwner(TenantId(f"{owner.tenant}/user"), BlockScope.USER, ""),
    )
    for other in others:
        await refused(NotFoundError, Reason.BLOCK_NOT_FOUND, store.get(other, "n"))
        assert await names(store, other) == [[]]


async def test_each_write_is_a_version_and_the_same_value_is_none(store: BlockStore, owner: BlockOwner) -> None:
    assert [await put(store, owner, "n", text) for text in ("a", "a", "b", "a")] == [1, 1, 2, 3]
    history = await store.history(owner, "n")
    assert [(b.version, b.content.value) for b in history] == [(3, b"a"), (2, b"b"), (1, b"a")]
    assert len({b.create_ms for b in history}) == 1


async def test_a_write_with_a_stale_version_is_refused_with_the_version(store: BlockStore, owner: BlockOwner) -> None:
    first = await store.put(owner, "n", HELLO, 0, 0, NO_REQUEST)
    again = store.put(owner, "n", Content(b"z"), 0, 0, NO_REQUEST)
    error = await refused(ConflictError, Reason.VERSION_MOVED, again)
    assert error.metadata["version"] == "1"
    await store.put(owner, "n", Content(b"z"), first.version, 0, NO_REQUEST)
    await refused(ConflictError, Reason.VERSION_MOVED, store.delete(owner, "n", 1, False, NO_REQUEST))
    assert await store.delete(owner, "n", 2, False, NO_REQUEST)
    assert (await store.put(owner, "n", HELLO, 0, 0, NO_REQUEST)).version == 4


async def test_a_deleted_block_is_gone_but_for_its_history(store: BlockStore, owner: BlockOwner) -> None:
    await put(store, owner, "n", "a")
    assert await store.delete(owner, "n", None, False, NO_REQUEST)
    assert not await store.delete(owner, "n", None, False, NO_REQUEST)
    assert not await store.delete(owner, "never", None, False, NO_REQUEST)
    await refused(NotFoundError, Reason.BLOCK_NOT_FOUND, store.get(owner, "n"))
    assert await names(store, owner) == [[]]
    assert [(b.version, b.deleted, b.content.value) for b in await store.history(owner, "n")] == [
        (2, True, b""),
        (1, False, b"a"),
    ]
    await store.delete(owner, "n", None, True, NO_REQUEST)
    assert await store.history(owner, "n") == ()
    assert await put(store, owner, "n") == 1


async def test_only_the_last_versions_are_kept(store: BlockStore, owner: BlockOwner) -> None:
    for i in range(HISTORY_MAX + 2):
        await put(store, owner, "n", str(i))
    history = await store.history(owner, "n")
    assert (len(history), history[0].version, history[-1].version) == (HISTORY_MAX, HISTORY_MAX + 2, 3)


async def test_a_repeated_request_answers_the_same_once(store: BlockStore, owner: BlockOwner) -> None:
    request = request_of("r", "put", "n", b"a")
    first = await store.put(owner, "n", Content(b"a"), None, 0, request)
    await put(store, owner, "n", "b")
    assert await store.put(owner, "n", Content(b"a"), None, 0, request) == first
    assert (await store.get(owner, "n")).content.value == b"b"
    other = store.put(owner, "n", Content(b"c"), None, 0, request_of("r", "put", "n", b"c"))
    await refused(AlreadyExistsError, Reason.REQUEST_ID_REUSED, other)
    gone = request_of("d", "delete", "n")
    assert await store.delete(owner, "n", None, False, gone)
    assert await store.delete(owner, "n", None, False, gone)
    for i in range(4):
        await store.put(owner, "m", Content(str(i).encode()), None, 0, request_of(f"r{i}", "put", i))
    assert (await store.put(owner, "n", Content(b"a"), None, 0, request)).version == 4


async def test_blocks_are_listed_by_name_page_by_page(store: BlockStore, owner: BlockOwner) -> None:
    for name in ("b/2", "a", "b/1", "b/\u00e9", "c", "b"):
        await put(store, owner, name)
    assert await names(store, owner) == [["a", "b", "b/1", "b/2", "b/\u00e9", "c"]]
    assert await names(store, owner, "b/", size=2) == [["b/1", "b/2"], ["b/\u00e9"]]
    assert await names(store, owner, "x") == [[]]
    page = await store.page(owner, "", [], "", 50, 1)
    assert ([b.name for b in page.blocks], page.next_after) == (["a"], "a")


async def test_blocks_are_found_by_words_in_name_or_value(store: BlockStore, owner: BlockOwner) -> None:
    await put(store, owner, "City/Kyoto", '{"hotel":"H-7"}')
    await put(store, owner, "city/osaka", "HOTEL H-8")
    assert await names(store, owner, "", "hotel") == [["City/Kyoto", "city/osaka"]]
    assert await names(store, owner, "", "kyoto", "h-7") == [["City/Kyoto"]]
    assert await names(store, owner, "", "text/plain") == [[]]


async def test_what_has_expired_is_not_there(store: BlockStore, owner: BlockOwner) -> None:
    await put(store, owner, "stays", ttl_ms=3_600_000)
    await put(store, owner, "stays", ttl_ms=0)
    await put(store, owner, "brief", ttl_ms=1)
    if isinstance(store, TwinBlockStore):
        store.now_ms += 2
    else:
        while True:  # the server's clock passes a millisecond
            try:
                await store.get(owner, "brief")
            except NotFoundError:
                break
    await refused(NotFoundError, Reason.BLOCK_NOT_FOUND, store.get(owner, "brief"))
    assert await store.history(owner, "brief") == ()
    assert await names(store, owner) == [["stays"]]
    assert (await store.put(owner, "brief", HELLO, 0, 0, NO_REQUEST)).version == 1
    assert len(await store.history(owner, "brief")) == 1


async def test_an_owner_has_a_limit(store: BlockStore, owner: BlockOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_twin, "BLOCKS_MAX", 2)
    monkeypatch.setattr(blocks_redis, "BLOCKS_MAX", 2)
    await put(store, owner, "a")
    await put(store, owner, "b")
    await put(store, owner, "b", "again")
    third = store.put(owner, "c", HELLO, None, 0, NO_REQUEST)
    await refused(ResourceExhaustedError, Reason.QUEUE_FULL, third)
