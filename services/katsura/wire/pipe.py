"""The pipe that joins the RPC process and the compute process of a shard or a member.

Messages are JSON objects behind a 4-byte little-endian length, over a unix socket pair: one batched message per step
and direction, never a pickle. Whoever needs bytes writes them as text. The compute end is synchronous, the RPC end may
be an asyncio one. End of file means that the other half is dead, and then this half has nothing to live for: both ends
raise `PeerDiedError`, and their owners exit.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from katsura.domain.errors import InternalError, UnavailableError

MESSAGE_BYTES_MAX = 256 * 1024 * 1024
SEND_TIMEOUT_S = 30.0
"""The other half reads without pause; one that has not for this long is stuck, which is as good as dead."""

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18

Message = Mapping[str, Any]
"""What a pipe carries: a JSON object."""


class PeerDiedError(UnavailableError):
    """The other half of this process pair is gone: exit."""


def _encoded(message: Message) -> bytes:
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > MESSAGE_BYTES_MAX:
        raise InternalError(f"a pipe message of {len(body)} bytes is longer than {MESSAGE_BYTES_MAX}")
    return _LENGTH.pack(len(body)) + body


def _length(head: bytes | bytearray) -> int:
    length = int(_LENGTH.unpack(head)[0])
    if length > MESSAGE_BYTES_MAX:
        raise PeerDiedError(f"the other half announced a message of {length} bytes: it is not sane")
    return length


class Pipe:
    """The synchronous end. It belongs to one thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._buffer = bytearray()
        self._messages: deque[dict[str, Any]] = deque()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    @classmethod
    def inherited(cls, fd: int) -> Pipe:
        """The end that a parent left at descriptor `fd`."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Readable when there is a message, or the other half died. Messages already read do not show here."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send one message, waiting for room at most SEND_TIMEOUT_S. Raises PeerDiedError."""
        data = memoryview(_encoded(message))
        deadline_s = time.monotonic() + SEND_TIMEOUT_S
        while data:
            try:
                data = data[self._socket.send(data) :]
            except BlockingIOError:
                self._await_room(deadline_s)
            except OSError as error:
                raise PeerDiedError(f"the other half died: {error}") from error

    def receive(self, timeout_s: float | None = 0.0) -> dict[str, Any] | None:
        """The next message, or None after `timeout_s` (None: wait for ever). Raises PeerDiedError."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._messages:
            left_ms = None if deadline_s is None else max(0.0, deadline_s - time.monotonic()) * 1000
            if not self._poll.poll(left_ms):
                return None
            self._fill()
        return self._messages.popleft()

    def close(self) -> None:
        """Let the other half see end of file."""
        self._socket.close()

    def _fill(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise PeerDiedError(f"the other half died: {error}") from error
        if not data:
            raise PeerDiedError("the other half died: end of file")
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _length(self._buffer[: _LENGTH.size])
            if len(self._buffer) < end:
                return
            self._messages.append(json.loads(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]

    def _await_room(self, deadline_s: float) -> None:
        # Read meanwhile: two halves that both wait for room would wait for ever.
        self._poll.modify(self._socket, select.POLLIN | select.POLLOUT)
        try:
            ready = self._poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
        finally:
            self._poll.modify(self._socket, select.POLLIN)
        if not ready:
            raise PeerDiedError(f"the other half has not read for {SEND_TIMEOUT_S:.0f} s")
        if ready[0][1] & select.POLLIN:
            self._fill()


class AsyncPipe:
    """The asyncio end: `async for message in pipe`, which ends with PeerDiedError."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, sock: socket.socket) -> AsyncPipe:
        """Take over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=_READ_BYTES))

    async def send(self, message: Message) -> None:
        """Send one message. Raises PeerDiedError."""
        try:
            self._writer.write(_encoded(message))
            await self._writer.drain()
        except OSError as error:
            raise PeerDiedError(f"the other half died: {error}") from error

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises PeerDiedError."""
        try:
            body = await self._reader.readexactly(_length(await self._reader.readexactly(_LENGTH.size)))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise PeerDiedError(f"the other half died: {error}") from error
        message: dict[str, Any] = json.loads(body)
        return message

    def __aiter__(self) -> AsyncPipe:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self.receive()

    async def close(self) -> None:
        """Let the other half see end of file; when this returns, it does: the caller may wait for its end at once."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


_HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""A compute process streams its weights on every token: huge pages spare it 5 to 15 % in address translation."""


def spawn(module: str, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start `python -m module <fd>` as the other half, which opens `Pipe.inherited(fd)`.

    The child has no other way to hear of us than the pipe, and ends when it closes. It keeps our standard output and
    error, and runs in our process group, but ignores an interactive Ctrl-C only if it says so itself.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        fd = theirs.fileno()
        os.set_inheritable(fd, True)
        child = subprocess.Popen(  # noqa: S603 (our own module by our own interpreter)
            [sys.executable, "-m", module, str(fd)],
            env={"GLIBC_TUNABLES": _HUGE_PAGES, **environment},
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
        )
    return child, ours
