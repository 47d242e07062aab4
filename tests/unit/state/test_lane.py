"""A shared connection: answers find their callers, whatever becomes of the others and of the server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio
import uvloop
from redis import exceptions as redis_errors

from katsura.state.lane import Lane
from katsura.testing.store import EmbeddedStore

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore("no") as server, redis.Redis(unix_socket_path=str(server.socket_path)) as client:
        client.config_set("requirepass", "secret")
        yield server


@asynccontextmanager
async def laned(url: str, timeout_s: float = 30.0) -> AsyncIterator[Lane]:
    lane = Lane(redis.asyncio.ConnectionPool.from_url(url, protocol=2, socket_connect_timeout=10), timeout_s)
    try:
        yield lane
    finally:
        await lane.close()


@asynccontextmanager
async def pretended(folder: Path, answer: Answer) -> AsyncIterator[str]:
    """A server that does `answer` to each connection."""
    path = folder / "s"
    serving = await asyncio.start_unix_server(answer, str(path))
    async with serving:
        yield f"unix://{path}"
        path.unlink()


def url_of(server: EmbeddedStore, db: int = 0) -> str:
    return f"unix://:secret@{server.socket_path}?db={db}"


async def test_commands_sent_together_share_a_connection_and_each_gets_its_own_answer(server: EmbeddedStore) -> None:
    async with laned(url_of(server)) as lane:
        echoed = await asyncio.gather(*(lane.command(("ECHO", n)) for n in range(100)))
        assert echoed == [str(n).encode() for n in range(100)]
        assert len(set(await asyncio.gather(*(lane.command(("CLIENT", "ID")) for _ in range(10))))) == 1


async def test_a_caller_that_is_cancelled_takes_nobodys_answer(server: EmbeddedStore) -> None:
    async with laned(url_of(server)) as lane:
        await lane.command(("PING",))
        tasks = [asyncio.ensure_future(lane.command(("ECHO", n))) for n in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(3), asyncio.CancelledError)
        assert answers == [str(n).encode() for n in range(10) if n != 3]


async def test_a_refused_command_fails_alone_and_by_its_kind(server: EmbeddedStore) -> None:
    async with laned(url_of(server)) as lane:
        good, bad = await asyncio.gather(lane.command(("PING",)), lane.command(("NOPE",)), return_exceptions=True)
        assert good == b"PONG"
        assert isinstance(bad, redis_errors.ResponseError)
    for login, kind in (("", redis_errors.AuthenticationError), (":wrong@", redis_errors.AuthenticationError)):
        async with laned(f"unix://{login}{server.socket_path}") as stranger:
            with pytest.raises(kind):
                await stranger.command(("PING",))


async def test_a_database_is_chosen(server: EmbeddedStore) -> None:
    async with laned(url_of(server, 3)) as third, laned(url_of(server)) as first:
        await third.command(("SET", "k", "v"))
        assert await third.command(("GET", "k")) == b"v"
        assert await first.command(("GET", "k")) is None


async def test_whoever_waits_for_a_server_that_is_silent_is_told_and_the_next_command_connects_anew(
    tmp_path: Path,
) -> None:
    seen: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer)
        while await reader.read(1024):
            if len(seen) == 2:
                writer.write(b"+PONG\r\n")
        writer.close()

    async with pretended(tmp_path, answer) as url, laned(url, timeout_s=0.05) as lane:
        told = await asyncio.gather(*(lane.command(("PING",)) for _ in range(3)), return_exceptions=True)
        assert [type(one) for one in told] == [redis_errors.TimeoutError] * 3
        lane._timeout_s = 30.0
        assert await lane.command(("PING",)) == b"PONG"


@pytest.mark.parametrize("says", [b"", b"?what\r\n", b"+PONG\r\n+PONG\r\n"], ids=["nothing", "no-resp", "too-much"])
def test_a_connection_that_ends_or_makes_no_sense_fails_for_all_who_wait(tmp_path: Path, says: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(says)
        writer.close()

    async def ask() -> None:
        async with pretended(tmp_path, answer) as url, laned(url) as lane:
            for _ in range(2):
                told = await asyncio.gather(lane.command(("GET", "a")), return_exceptions=True)
                assert says.startswith(b"+") or isinstance(told[0], redis_errors.ConnectionError)

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(ask())


async def test_a_server_that_is_not_there_is_asked_once_for_all_who_call(tmp_path: Path) -> None:
    unheard: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: unheard.append(about))
    async with laned(f"unix://{tmp_path}/none") as lane:
        told = await asyncio.gather(*(lane.command(("PING",)) for _ in range(5)), return_exceptions=True)
        assert {type(one) for one in told} == {FileNotFoundError}
        assert len({id(one) for one in told}) == 1
    gc.collect()  # a task whose error nobody read would warn
    assert not unheard, "a connection that failed is nobody's"


async def test_closing_tells_whoever_waits(tmp_path: Path) -> None:
    heard = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        heard.set()
        await reader.read()
        writer.close()

    async with pretended(tmp_path, silent) as url:
        async with laned(url) as lane:
            asked = asyncio.ensure_future(lane.command(("PING",)))
            await heard.wait()
        with pytest.raises(redis_errors.ConnectionError, match="closed"):
            await asked
