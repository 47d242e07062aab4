"""Slots in memory that both ends see, and a doorbell socket: what `shm` and `inproc` share.

    requests: written by the client only          replies: written by the server only
    [slot 0 | slot 1 | ...]                       [slot 0 | slot 1 | ...]
              \\                                            /
               `-- doorbell (slot u32, nbytes u32) on a SEQPACKET socket --'

The doorbell message is the only hand-over: nobody polls a word in memory, the kernel orders the writes before the
message, a blocked reader costs nothing, and when a process dies its socket says so at once.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from katsura.domain.errors import KatsuraError
from katsura.wire.header import BadFrameError
from katsura.wire.server import Server
from katsura.wire.transport import Limits, Slot, SlotChannel, SlotState, slot_view

DOORBELL = struct.Struct("<II")
_DOORBELL_READ = DOORBELL.size + 1
_TIMEVAL = struct.Struct("@ll")
_SLICE_S = 0.05
"""A blocked client looks at its deadline this often."""

_log = logging.getLogger(__name__)


class RingChannel(SlotChannel):
    """The client's end."""

    def __init__(
        self,
        transport: str,
        sock: socket.socket,
        limits: Limits,
        welcome: Mapping[str, Any],
        requests: memoryview,
        replies: memoryview,
    ) -> None:
        super().__init__(transport, limits, welcome, requests, replies)
        self._socket = sock
        self._early: bytes | None = None  # heard while waiting for another slot, not looked at yet
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(0, int(_SLICE_S * 1e6)))
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The doorbell socket."""
        return self._socket.fileno()

    def wait(self, slot: Slot, timeout_s: float) -> memoryview:
        """The answer to that very slot. The next to come, of the length of its last: the way of a decode loop."""
        if slot.state is SlotState.POSTED and timeout_s > _SLICE_S:
            try:
                message = self._socket.recv(_DOORBELL_READ)
            except OSError:  # not yet, or never: the long way tells
                timeout_s -= _SLICE_S
            else:
                if message == DOORBELL.pack(slot.index, len(slot.reply)):
                    slot.state = SlotState.ANSWERED
                    return slot.reply
                self._early = message
        return super().wait(slot, timeout_s)

    def _ring(self, index: int, nbytes: int, timeout_s: float) -> bool:
        # Credits bound the messages under way far below the socket's buffer, so a full buffer is a broken peer.
        try:
            self._socket.send(DOORBELL.pack(index, nbytes), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _heard(self, timeout_s: float) -> tuple[int, int] | None:
        message, self._early = self._early, None
        deadline_s = time.monotonic() + timeout_s
        while message is None:
            try:
                if (left_s := deadline_s - time.monotonic()) > _SLICE_S:
                    message = self._socket.recv(_DOORBELL_READ)  # one system call for the common case
                elif self._readable.poll(max(0.0, left_s) * 1000):
                    message = self._socket.recv(_DOORBELL_READ, socket.MSG_DONTWAIT)
                else:
                    return None
            except BlockingIOError:
                continue
        if not message:
            raise EOFError
        if len(message) != DOORBELL.size:
            raise BadFrameError(f"a doorbell of {len(message)} bytes or more")
        index, nbytes = DOORBELL.unpack(message)
        return index, nbytes

    def _close(self) -> None:
        self._socket.close()


class RingGreeting(ABC):
    """A connection that has not said HELLO yet, on the server. Backends differ in how the memory changes hands."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server, self._socket = server, sock
        sock.setblocking(False)
        try:
            self._client = server.enlist(self._drop)
        except KatsuraError as error:
            _log.warning("%s", error.message)
            sock.close()
            return
        server.add(sock.fileno(), self._on_event)

    @abstractmethod
    def _receive(self) -> memoryview:
        """The HELLO. OSError or BadFrameError."""

    @abstractmethod
    def _map(self, limits: Limits) -> tuple[memoryview, memoryview]:
        """Memory of requests and replies. OSError or BadFrameError."""

    @abstractmethod
    def _send(self, answer: bytes) -> None:
        """The WELCOME or NACK, with whatever the client needs to map the replies. OSError."""

    def _on_event(self, events: int) -> None:
        try:
            hello = self._receive()
        except BlockingIOError:
            return
        except (BadFrameError, OSError) as error:
            self._drop(f"no HELLO: {error}")
            return
        try:
            limits, answer = self._server.greet(hello)
            if limits is None:
                self._send(answer)
                self._drop("refused")
                return
            requests, replies = self._map(limits)
            peer = RingPeer(self._server, self._client, self._socket, limits, requests, replies)
            self._send(answer)
        except (BadFrameError, OSError) as error:
            self._drop(f"the greeting failed: {error}")
            return
        self._server.remove(self._socket.fileno())
        self._server.settle(self._client, peer.drop)
        self._server.add(self._socket.fileno(), peer.on_event)

    def _drop(self, why: str) -> None:
        _log.info("a data-plane connection ended before it was greeted: %s", why)
        self._server.remove(self._socket.fileno())
        self._socket.close()
        self._server.strike_off(self._client)


class RingRequest:
    """One slot of a client, on the server; `held` from its doorbell to its answer. `frame` is what was posted last."""

    __slots__ = ("_peer", "client", "frame", "held", "reply_buffer", "reply_bytes", "slot")

    def __init__(self, peer: RingPeer, index: int, frame: memoryview, reply_buffer: memoryview) -> None:
        self._peer, self.slot, self.held = peer, index, False
        self.client, self.reply_bytes = peer.client, len(reply_buffer)
        self.frame, self.reply_buffer = frame, reply_buffer

    @property
    def alive(self) -> bool:
        """Whether the client is still there."""
        return self._peer.alive

    def answer(self, nbytes: int) -> None:
        """Ring the client."""
        peer = self._peer
        if not peer.alive:
            return
        self.held = False
        try:
            peer.socket.send(DOORBELL.pack(self.slot, nbytes), socket.MSG_DONTWAIT)
        except OSError as error:
            peer.drop(f"it does not take its answer: {error}")


class RingPeer:
    """A greeted client, on the server."""

    def __init__(
        self,
        server: Server,
        client: int,
        sock: socket.socket,
        limits: Limits,
        requests: memoryview,
        replies: memoryview,
    ) -> None:
        self.client = client
        self.socket = sock
        self.alive = True
        self._server = server
        self._buffers = [slot_view(requests, index, limits.request_bytes) for index in range(limits.credits)]
        self._slots = [
            RingRequest(self, index, buffer, slot_view(replies, index, limits.reply_bytes))
            for index, buffer in enumerate(self._buffers)
        ]

    def on_event(self, events: int) -> None:
        """A doorbell, or the end."""
        try:
            message = self.socket.recv(_DOORBELL_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self.drop(f"its socket broke: {error}")
            return
        if not message:
            self.drop("it closed")
            return
        index, nbytes = DOORBELL.unpack(message) if len(message) == DOORBELL.size else (len(self._slots), 0)
        if index >= len(self._slots) or self._slots[index].held or nbytes > len(self._buffers[index]):
            self.drop(f"it rang for slot {index} with {nbytes} bytes, which it may not")
            return
        request = self._slots[index]
        request.held = True
        if len(request.frame) != nbytes:
            request.frame = self._buffers[index][:nbytes]
        self._server.arrived(request)

    def drop(self, why: str) -> None:
        """End this client; its slots are never used again."""
        if self.alive:
            self.alive = False
            _log.info("data-plane client %d left: %s", self.client, why)
            with contextlib.suppress(OSError):
                self._server.remove(self.socket.fileno())
            self.socket.close()
            self._server.strike_off(self.client)
