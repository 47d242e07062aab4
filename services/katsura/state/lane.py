"""One connection for the commands of all callers, answered in the order in which they were sent.

The client library gives each command a connection from a pool, which costs as much CPU as everything else about a small
call together. Here a command is one write and one future, and what is sent in one turn of the event loop travels
together, so that a server that syncs before it answers syncs once for all of it. Only for commands that do not block.

Nothing is sent twice: whoever waits when a connection is lost is told so, and the next command makes a new one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection, ConnectionPool, UnixDomainSocketConnection

_INCOMPLETE: Final = object()
_KINDS: Final[dict[str, type[redis_errors.RedisError]]] = {
    "NOAUTH": redis_errors.AuthenticationError,
    "WRONGPASS": redis_errors.AuthenticationError,
    "LOADING": redis_errors.BusyLoadingError,
    "NOPERM": redis_errors.NoPermissionError,
    "READONLY": redis_errors.ReadOnlyError,
    "OOM": redis_errors.OutOfMemoryError,
}

Part = bytes | str | int | float


class Lane:
    """Commands over one connection at a time, made when it is needed.

    Args:
        pool: how to connect.
        timeout_s: an answer that takes longer means that the server is gone, for everybody who waits.
    """

    def __init__(self, pool: ConnectionPool, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None
        self._connecting: asyncio.Task[_Wire] | None = None

    async def command(self, parts: Sequence[Part]) -> Any:
        """What the server answers.

        Raises:
            redis.exceptions.RedisError, OSError: as the client library's.
        """
        wire = self._wire
        if wire is None or wire.lost is not None:
            wire = await self._connected()
        return await wire.send(parts)

    async def close(self) -> None:
        """Close the connection; whoever waits is told that it is lost."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._wire is not None:
            self._wire.give_up(redis_errors.ConnectionError("it was closed"))
            await self._wire.closed.wait()

    async def _connected(self) -> _Wire:
        """A new connection, which all who ask meanwhile share."""
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            self._connecting.add_done_callback(self._made)
        return await asyncio.shield(self._connecting)

    def _made(self, task: asyncio.Task[_Wire]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._wire = task.result()

    async def _connect(self) -> _Wire:
        loop = asyncio.get_running_loop()
        to = self._pool.make_connection()  # type: ignore[no-untyped-call]
        wire = _Wire(self._timeout_s)
        try:
            async with asyncio.timeout(to.socket_connect_timeout):
                if isinstance(to, UnixDomainSocketConnection):
                    await loop.create_unix_connection(lambda: wire, to.path)
                else:
                    assert isinstance(to, Connection), "the pool makes sockets of a machine or of a network"
                    await loop.create_connection(lambda: wire, **to._connection_arguments())
                if to.password:
                    login = [to.username, to.password] if to.username else [to.password]
                    await wire.send(("AUTH", *login))
                if to.db:
                    await wire.send(("SELECT", to.db))
        except BaseException:
            wire.give_up(redis_errors.ConnectionError("it was not made"))
            raise
        return wire


class _Wire(asyncio.Protocol):
    """One connection. `lost` says why it is no longer one, `closed` that its socket is gone."""

    def __init__(self, timeout_s: float) -> None:
        self.lost: Exception | None = None
        self.closed = asyncio.Event()
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(replyError=_reply_error, notEnoughData=_INCOMPLETE)
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._transport: asyncio.Transport | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.lost is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.give_up(error or redis_errors.ConnectionError("the server closed the connection"))
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                _, future = self._waiting.popleft()
                if future.done():
                    continue  # its caller was cancelled
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        except (hiredis.ProtocolError, IndexError) as error:
            self.give_up(redis_errors.ConnectionError(f"what it answers is not RESP: {error}"))

    def send(self, parts: Sequence[Part]) -> asyncio.Future[Any]:
        """Send one command; its answer, or why there is none."""
        packed = hiredis.pack_command(tuple(parts))  # type: ignore[arg-type]  # it takes any number of parts
        future = self._loop.create_future()
        if self.lost is not None or self._transport is None:
            future.set_exception(self.lost or redis_errors.ConnectionError("it is not open"))
            return future
        self._waiting.append((self._loop.time(), future))
        if self._alarm is None:
            self._alarm = self._loop.call_later(self._timeout_s, self._look)
        self._transport.write(packed)
        return future

    def give_up(self, why: Exception) -> None:
        """Close at once, and tell whoever waits."""
        if self.lost is None:
            self.lost = why
        if self._transport is not None:
            self._transport.abort()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(type(why)(*why.args))

    def _look(self) -> None:
        """Give up where the oldest command has waited too long; else look again when it will have."""
        self._alarm = None
        if not self._waiting:
            return
        left = self._waiting[0][0] + self._timeout_s - self._loop.time()
        if left > 0:
            self._alarm = self._loop.call_later(left, self._look)
        else:
            self.give_up(redis_errors.TimeoutError(f"no answer in {self._timeout_s:g} s"))


def _reply_error(text: str) -> redis_errors.RedisError:
    return _KINDS.get(text.partition(" ")[0], redis_errors.ResponseError)(text)
