"""The server's side of every transport: one epoll set over all clients of all listeners.

A member's compute process is single-threaded: `poll` blocks until a client posts (or a pipe speaks), returns what is
there, and the caller answers each request in place, in any order. Listeners add themselves; a client that breaks the
protocol is dropped, which its end sees as end of file.
"""

from __future__ import annotations

import itertools
import logging
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from katsura.domain.errors import FailedPreconditionError, KatsuraError
from katsura.wire.header import BadFrameError, Kind, NackReason, control, read_control, read_header
from katsura.wire.transport import Limits, Request

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
HANDSHAKE_S = 10.0
"""A connection that has not said HELLO by then is dropped."""

_log = logging.getLogger(__name__)

Admit = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""What a HELLO said -> what the WELCOME says. Raises a KatsuraError to refuse."""


class Server:
    """Polls many clients. Not thread-safe but for `add`.

    Args:
        limits: the most that one client may ask for.
        admit: decides about a HELLO.
        clients_max: connections beyond this are closed at once.
    """

    def __init__(self, limits: Limits, admit: Admit, clients_max: int = 256) -> None:
        self._limits = limits
        self._admit = admit
        self._clients_max = clients_max
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._closers: list[Callable[[], None]] = []
        self._arrived: list[Request] = []
        self._clients: dict[int, Callable[[str], None]] = {}
        self._ungreeted: dict[int, float] = {}
        self._numbers = itertools.count(1)

    def add(self, fd: int, on_event: Callable[[int], None], events: int = READ) -> None:
        """Call `on_event(events)` inside `poll` whenever `fd` is ready."""
        self._handlers[fd] = on_event
        self._epoll.register(fd, events)

    def expect(self, fd: int, events: int) -> None:
        """Change what `fd` is watched for."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Watch `fd` no longer. Call it before closing the descriptor."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def on_close(self, close: Callable[[], None]) -> None:
        """Call `close` when the server closes (listeners)."""
        self._closers.append(close)

    def enlist(self, drop: Callable[[str], None]) -> int:
        """A new connection's number, or FailedPreconditionError when there are too many. `drop(why)` ends it."""
        if len(self._clients) >= self._clients_max:
            raise FailedPreconditionError(f"this member already serves {self._clients_max} clients")
        client = next(self._numbers)
        self._clients[client] = drop
        self._ungreeted[client] = time.monotonic() + HANDSHAKE_S
        return client

    def settle(self, client: int, drop: Callable[[str], None]) -> None:
        """The connection has been greeted: it may stay silent from now on, and ends by `drop`."""
        self._clients[client] = drop
        self._ungreeted.pop(client, None)

    def strike_off(self, client: int) -> None:
        """Forget a client that is gone, and what it posted."""
        self._clients.pop(client, None)
        self._ungreeted.pop(client, None)
        self._arrived = [request for request in self._arrived if request.client != client]

    @property
    def client_count(self) -> int:
        """Connections now, greeted or not."""
        return len(self._clients)

    def has_client(self, client: int) -> bool:
        """Whether this client is still connected."""
        return client in self._clients

    def arrived(self, request: Request) -> None:
        """Hand a posted request to the next return of `poll`."""
        self._arrived.append(request)

    def greet(self, hello: memoryview) -> tuple[Limits | None, bytes]:
        """Judge a HELLO: (limits granted, WELCOME), or (None, NACK)."""
        try:
            header = read_header(hello)
            if header.kind is not Kind.HELLO:
                raise BadFrameError(f"a connection begins with a HELLO, not a {header.kind.name}")
            body = read_control(hello, header)
            limits = Limits.from_json(body)
            if not limits.within(self._limits):
                raise FailedPreconditionError(f"{limits} is more than this member grants: {self._limits}")
            return limits, control(Kind.WELCOME, {**self._admit(body), **limits.as_json()})
        except KatsuraError as error:
            _log.warning("refused a data-plane client: %s", error.message)
            return None, control(Kind.NACK, {"reason": NackReason.REFUSED, "message": error.message})

    def poll(self, timeout_s: float) -> list[Request]:
        """What has been posted, after at most `timeout_s`. Empty when only something else happened."""
        for fd, events in self._epoll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
        if self._ungreeted:
            now = time.monotonic()
            for client in [client for client, limit_s in self._ungreeted.items() if limit_s < now]:
                self.drop(client, f"it said no HELLO within {HANDSHAKE_S:.0f} s")
        arrived, self._arrived = self._arrived, []
        return arrived

    def drop(self, client: int, why: str) -> None:
        """End one client: its end sees end of file."""
        if client in self._clients:
            self._clients[client](why)

    def close(self) -> None:
        """End all clients and listeners."""
        for drop in list(self._clients.values()):
            drop("the server closes")
        for close in self._closers:
            close()
        self._epoll.close()
