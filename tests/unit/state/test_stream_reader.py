"""One blocking read for many streams: what is added while it waits, who is told, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from katsura.domain.errors import FailedPreconditionError, Reason
from katsura.state.connect import Store
from katsura.state.stream_reader import Entry, Followed, StreamReader
from katsura.testing.store import EmbeddedStore

LIMIT_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("no") as server:
        yield server


@pytest.fixture
async def store(server: EmbeddedStore) -> AsyncIterator[Store]:
    store = await Store.open(server.url)
    await store.client.flushall()
    yield store
    await store.close()


class Reader:
    """Streams and what came in them."""

    def __init__(self, store: Store) -> None:
        self.store, self.reader = store, StreamReader(store)
        self.followed: list[Followed] = []
        self.come: asyncio.Queue[tuple[bytes, bytes] | BaseException] = asyncio.Queue()

    def follow(self, stream: bytes) -> Followed:
        def take(entries: Sequence[Entry]) -> None:
            for entry, _ in entries:
                self.come.put_nowait((stream, entry))

        self.followed.append(Followed(stream, "0-0", take, self.come.put_nowait))
        self.reader.follow(self.followed[-1])
        return self.followed[-1]

    async def add(self, stream: bytes, entry: str) -> None:
        await self.store.command("XADD", stream, entry, "k", "v")

    async def next(self) -> tuple[bytes, bytes] | BaseException:
        async with asyncio.timeout(LIMIT_S):
            return await self.come.get()

    async def waits(self) -> None:
        """Until the server holds the read back, and only that one."""
        async with asyncio.timeout(LIMIT_S):
            while not (blocked := (await self.store.client.info("clients"))["blocked_clients"]):
                continue
        assert blocked == 1


@pytest.fixture
async def reader(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    monkeypatch.setattr("katsura.state.stream_reader._BLOCK_S", 10 * LIMIT_S)
    monkeypatch.setattr("katsura.state.stream_reader._SILENT_S", 20 * LIMIT_S)
    reader = Reader(store)
    yield reader
    for followed in reader.followed:
        await reader.reader.leave(followed)


async def test_a_stream_that_is_added_while_a_read_waits_is_read_at_once(reader: Reader) -> None:
    for stream in (b"a", b"b", b"c"):
        reader.follow(stream)
        await reader.add(stream, "1-1")
        assert await reader.next() == (stream, b"1-1")
        await reader.waits()
    await reader.add(b"a", "2-1")
    assert await reader.next() == (b"a", b"2-1")


async def test_many_that_are_added_together_share_one_read(reader: Reader) -> None:
    names = [f"s{i}".encode() for i in range(200)]
    reader.follow(b"first")
    await reader.waits()
    for name in names:
        reader.follow(name)
        await reader.add(name, "1-1")
    assert sorted([await reader.next() for _ in names]) == sorted((name, b"1-1") for name in names)  # type: ignore[type-var]
    await reader.waits()


async def test_a_stream_that_was_left_is_not_told_and_the_last_one_ends_the_reader(reader: Reader) -> None:
    a, b = reader.follow(b"a"), reader.follow(b"b")
    await reader.waits()
    await reader.reader.leave(a)
    await reader.add(b"a", "1-1")
    await reader.add(b"b", "1-1")
    assert await reader.next() == (b"b", b"1-1")
    reading = reader.reader._reading
    await reader.reader.leave(b)
    assert reading is not None
    assert reading.done()
    reader.follow(b"a")
    assert await reader.next() == (b"a", b"1-1")


async def test_a_server_that_lets_nobody_end_its_waiting_is_read_when_it_ended_by_itself(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("katsura.state.stream_reader._BLOCK_S", 0.1)
    command = reader.store.command

    async def refused(*parts: str | bytes) -> object:
        if parts[0] == "CLIENT":
            raise FailedPreconditionError("no permission", reason=Reason.INVALID_CREDENTIAL)
        return await command(*parts)

    monkeypatch.setattr(reader.store, "command", refused)
    reader.follow(b"a")
    await reader.waits()
    reader.follow(b"b")
    await reader.add(b"b", "1-1")
    assert await reader.next() == (b"b", b"1-1")


async def test_a_failure_is_told_to_all_and_whoever_follows_anew_begins_a_new_reader(reader: Reader) -> None:
    await reader.store.command("SET", "notastream", "x")
    reader.follow(b"a")
    reader.follow(b"notastream")
    errors = [await reader.next(), await reader.next()]
    assert all(isinstance(error, Exception) for error in errors)
    assert reader.reader.followed == 0
    await reader.add(b"a", "1-1")
    reader.follow(b"a")
    assert await reader.next() == (b"a", b"1-1")
