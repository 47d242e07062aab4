"""One blocking read for all the streams that a process follows, whoever follows them.

A connection for each stream would cost the server a client, and us a task and a socket, per watched tree. The streams
of one read lie under different hash tags; like the rest of this room it asks one server, not a cluster of slots.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from katsura.domain.errors import KatsuraError
from katsura.state.connect import Store, translated

Entry = tuple[bytes, Mapping[bytes, bytes]]

_ENTRIES_PER_STREAM: Final = 256
_BLOCK_S: Final = 5.0
_SILENT_S: Final = 10.0
_AGAIN_S: Final = 0.01
_CANCEL_AGAIN_S: Final = 0.5
_PAUSE_PER_STREAM_S: Final = 10e-6
"""Between two reads: what a thousand streams cost the server and us, they cost fifty times a second at most."""


class Followed:
    """A stream, the entry after which it is read, who takes what comes, and who is told that nothing will.

    Neither callback may raise or wait.
    """

    def __init__(
        self, stream: bytes, at: str, take: Callable[[Sequence[Entry]], None], fail: Callable[[BaseException], None]
    ) -> None:
        self.stream, self.take, self.fail = stream, take, fail
        self.at: str | bytes = at


class StreamReader:
    """Reads while anything is followed. A failure ends it for all; whoever follows anew begins a new one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followed: dict[bytes, Followed] = {}
        self._changes = 0
        self._read_changes = -1
        self._began = asyncio.Event()
        self._client_id = 0
        self._reading: asyncio.Task[None] | None = None
        self._interrupting: asyncio.Task[None] | None = None

    @property
    def followed(self) -> int:
        """How many streams are read."""
        return len(self._followed)

    def follow(self, followed: Followed) -> None:
        """Read one more stream. Whoever followed it hears no more of it."""
        self._followed[followed.stream] = followed
        self._changes += 1
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())
            self._reading.add_done_callback(self._ended)
        elif self._interrupting is None:
            self._interrupting = asyncio.get_running_loop().create_task(self._interrupt())

    async def leave(self, followed: Followed) -> None:
        """Read a stream no more; when this returns and it was the last one, the connection is closed."""
        if self._followed.get(followed.stream) is followed:
            del self._followed[followed.stream]
        if not self._followed and self._reading is not None:
            reading, self._reading = self._reading, None
            # Asked again until it is so: the client's `wait_for` of Python 3.11 can lose a cancel.
            while not reading.done():
                reading.cancel()
                await asyncio.wait((reading,), timeout=_CANCEL_AGAIN_S)

    def _ended(self, reading: asyncio.Task[None]) -> None:
        error = None if reading.cancelled() else reading.exception()
        if self._reading is not reading:
            return
        self._reading = None
        failed, self._followed = list(self._followed.values()), {}
        for followed in failed:
            followed.fail(error or asyncio.CancelledError())

    async def _read(self) -> None:
        client = await self._store.blocking_client()
        block_ms = round(_BLOCK_S * 1000)
        try:
            with translated(self._store.url):
                self._client_id = await client.client_id()
            while True:
                reading = dict(self._followed)
                self._read_changes = self._changes
                self._began.set()
                with translated(self._store.url):
                    async with asyncio.timeout(_SILENT_S):
                        found: Any = await client.xread(
                            {stream: each.at for stream, each in reading.items()}, _ENTRIES_PER_STREAM, block_ms
                        )
                for stream, entries in found or ():
                    followed = reading[stream]
                    followed.at = entries[-1][0]
                    if self._followed.get(stream) is followed:
                        followed.take(entries)
                await asyncio.sleep(len(reading) * _PAUSE_PER_STREAM_S)
        finally:
            await client.aclose()

    async def _interrupt(self) -> None:
        """End the read that is under way, so that the next one reads what was added. It is asked again until it is so:
        the first time may be before that read began to wait."""
        try:
            while self._reading is not None and self._read_changes != self._changes:
                self._began.clear()
                if self._client_id:
                    await self._store.command("CLIENT", "UNBLOCK", self._client_id)
                try:
                    async with asyncio.timeout(_AGAIN_S):
                        await self._began.wait()
                except TimeoutError:
                    continue
        except KatsuraError:
            return  # what was added is read when the read under way ends by itself, _BLOCK_S later at most
        finally:
            self._interrupting = None
