"""TCP between machines: TLS is required off loopback.

Every message is a preamble (slot u32, nbytes u32) and the frame. The preamble lies in the lead right before the slot's
bytes, so both leave in one write, and the receiver reads the frame straight into the same slot of its own memory.
Sockets never block: a large frame to a slow peer waits in the kernel's poll, on the server only in that client's queue.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from katsura.domain.errors import FailedPreconditionError, KatsuraError, UnavailableError
from katsura.wire.header import CONTROL_BYTES_MAX, BadFrameError, Kind, control
from katsura.wire.server import READ, WRITE, Server
from katsura.wire.tls import Contexts
from katsura.wire.transport import (
    LEAD_BYTES,
    ChannelRetiredError,
    ChannelTimeoutError,
    Limits,
    SlotChannel,
    SlotState,
    private_region,
    read_welcome,
    slot_stride,
    slot_view,
)

_PREAMBLE = struct.Struct("<II")
_GREETING_SLOT = 2**32 - 1
_BACKLOG = 64
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_log = logging.getLogger(__name__)


def connect(
    host: str,
    port: int,
    hello: Mapping[str, Any],
    limits: Limits,
    timeout_s: float,
    tls: Contexts | None = None,
) -> TcpChannel:
    """A channel to `host`:`port`, under TLS if `tls` is given; off loopback it must be.

    Raises ChannelRetiredError or ChannelTimeoutError if the server is not there or not willing.
    """
    deadline_s = time.monotonic() + timeout_s
    try:
        sock = socket.create_connection((host, port), timeout=timeout_s)
    except TimeoutError as error:
        raise ChannelTimeoutError(f"nobody answered at {host}:{port} within {timeout_s:.3f} s") from error
    except OSError as error:
        raise ChannelRetiredError(f"cannot reach {host}:{port}: {error}") from error
    try:
        _must_be_safe(sock.getpeername()[0], tls)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls().wrap_socket(sock, server_hostname=host)
        sock.setblocking(False)
        stream = _Stream(sock)
        greeting = control(Kind.HELLO, {**hello, **limits.as_json()})
        message = memoryview(_PREAMBLE.pack(_GREETING_SLOT, len(greeting)) + greeting)
        if not stream.send(message, deadline_s):
            raise TimeoutError
        welcome = read_welcome(stream.greeting(deadline_s))
    except TimeoutError as error:
        sock.close()
        raise ChannelTimeoutError(f"{host}:{port} did not greet within {timeout_s:.3f} s") from error
    except (OSError, EOFError) as error:
        sock.close()
        raise ChannelRetiredError(f"{host}:{port} broke off while greeting: {error or 'end of file'}") from error
    except KatsuraError:
        sock.close()
        raise
    return TcpChannel(stream, limits, welcome)


def _must_be_safe(address: str, tls: Contexts | None) -> None:
    if tls is None and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise FailedPreconditionError(
            f"{address} is not loopback: activations leave this machine only under TLS; configure a certificate"
        )


class _Stream:
    """A non-blocking socket that a client waits on."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._preamble = bytearray(_PREAMBLE.size)
        self._poll = select.poll()
        self._poll.register(sock, 0)

    def send(self, data: memoryview, deadline_s: float) -> bool:
        """All of `data`, or False at the deadline."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except _WANTS as want:
                if not self._ready(want, select.POLLOUT, deadline_s):
                    return False
        return True

    def preamble(self, deadline_s: float) -> tuple[int, int] | None:
        """The next message's (slot, nbytes), or None at the deadline. EOFError."""
        if not self.receive(memoryview(self._preamble), deadline_s):
            return None
        slot, nbytes = _PREAMBLE.unpack(self._preamble)
        return slot, nbytes

    def receive(self, into: memoryview, deadline_s: float) -> bool:
        """Fill `into`. False if the deadline passed before its first byte; TimeoutError if it passed half-way."""
        wanted = len(into)
        while into:
            try:
                count = self.socket.recv_into(into)
            except _WANTS as want:
                if not self._ready(want, select.POLLIN, deadline_s):
                    if len(into) < wanted:
                        raise TimeoutError("an answer stopped half-way") from None
                    return False
                continue
            if not count:
                raise EOFError
            into = into[count:]
        return True

    def greeting(self, deadline_s: float) -> bytes:
        """The server's first message. TimeoutError, EOFError, BadFrameError."""
        preamble = self.preamble(deadline_s)
        if preamble is None:
            raise TimeoutError
        if preamble[0] != _GREETING_SLOT or preamble[1] > CONTROL_BYTES_MAX:
            raise BadFrameError("the server's first message is no greeting")
        message = bytearray(preamble[1])
        if not self.receive(memoryview(message), deadline_s):
            raise TimeoutError
        return bytes(message)

    def _ready(self, want: OSError, events: int, deadline_s: float) -> bool:
        if isinstance(want, ssl.SSLWantReadError):
            events = select.POLLIN
        elif isinstance(want, ssl.SSLWantWriteError):
            events = select.POLLOUT
        self._poll.modify(self.socket, events)
        return bool(self._poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000))


class TcpChannel(SlotChannel):
    """The client's end."""

    def __init__(self, stream: _Stream, limits: Limits, welcome: Mapping[str, Any]) -> None:
        requests, replies = private_region(limits, limits.request_bytes), private_region(limits, limits.reply_bytes)
        super().__init__("tcp", limits, welcome, requests, replies)
        self._stream = stream

    def fileno(self) -> int:
        """The socket."""
        return self._stream.socket.fileno()

    def _ring(self, index: int, nbytes: int, timeout_s: float) -> bool:
        message = _message(self._requests, index, self.limits.request_bytes, nbytes)
        return self._stream.send(message, time.monotonic() + timeout_s)

    def _heard(self, timeout_s: float) -> tuple[int, int] | None:
        deadline_s = time.monotonic() + timeout_s
        preamble = self._stream.preamble(deadline_s)
        if preamble is None:
            return None
        index, nbytes = preamble
        posted = index < len(self._slots) and self._slots[index].state is SlotState.POSTED
        if not posted or nbytes > self.limits.reply_bytes:
            raise BadFrameError(f"slot {index} with {nbytes} bytes was not asked for")
        if not self._stream.receive(self._replies[index][:nbytes], deadline_s):
            raise TimeoutError("an answer stopped half-way")
        return preamble

    def _close(self) -> None:
        self._stream.socket.close()


def _message(region: memoryview, index: int, slot_bytes: int, nbytes: int) -> memoryview:
    """The preamble and the frame of a slot, as they lie side by side."""
    start = index * slot_stride(slot_bytes) + LEAD_BYTES - _PREAMBLE.size
    _PREAMBLE.pack_into(region, start, index, nbytes)
    return region[start : start + _PREAMBLE.size + nbytes]


def listen(server: Server, host: str, port: int, tls: Contexts | None = None) -> int:
    """Accept clients of `server` at `host`:`port` (0: any free one). Returns the port.

    Raises FailedPreconditionError for an address off loopback without TLS, UnavailableError if the port is taken.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        _must_be_safe(str(address[0]), tls)
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise UnavailableError(f"{host!r} is no address to listen at: {error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise UnavailableError(f"cannot listen at {host}:{port}: {error}; choose another port") from error
    sock.setblocking(False)
    _Listener(server, sock, tls)
    return int(sock.getsockname()[1])


class _Listener:
    def __init__(self, server: Server, sock: socket.socket, tls: Contexts | None) -> None:
        self._server, self._socket, self._tls = server, sock, tls
        server.add(sock.fileno(), self._on_event)
        server.on_close(self._close)

    def _on_event(self, events: int) -> None:
        try:
            sock, _ = self._socket.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                sock = self._tls().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            _log.warning("cannot accept a data-plane client: %s", error)
            return
        try:
            _Peer(self._server, sock)
        except KatsuraError as error:
            _log.warning("%s", error.message)
            sock.close()

    def _close(self) -> None:
        self._server.remove(self._socket.fileno())
        self._socket.close()


class _TcpRequest:
    """A posted frame, on the server."""

    __slots__ = ("_peer", "client", "frame", "reply_bytes", "slot")

    def __init__(self, peer: _Peer, index: int, frame: memoryview, reply_bytes: int) -> None:
        self._peer, self.slot = peer, index
        self.client, self.reply_bytes = peer.client, reply_bytes
        self.frame = frame

    @property
    def alive(self) -> bool:
        """Whether the client is still there."""
        return self._peer.alive

    @property
    def reply_buffer(self) -> memoryview:
        """Where the answer goes."""
        return self._peer.reply_buffer(self.slot)

    def answer(self, nbytes: int) -> None:
        """Send it, or queue what the kernel does not take now."""
        self._peer.answer(self.slot, nbytes)


class _Peer:
    """One client, on the server: a state machine that is never waited for.

    Reading alternates between a preamble and the bytes that it announces; before the HELLO those go to a small buffer
    of their own, afterwards to the slot.
    """

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server, self._socket = server, sock
        self._shaken = not isinstance(sock, ssl.SSLSocket)
        self._limits: Limits | None = None
        self._requests = self._replies = memoryview(b"")
        self._preamble = bytearray(_PREAMBLE.size)
        self._target: tuple[int, memoryview] | None = None
        self._missing = memoryview(self._preamble)
        self._outbox: deque[tuple[int, memoryview]] = deque()
        self._held: set[int] = set()
        self._watched = READ
        self.alive = True
        self.client = server.enlist(self.drop)
        server.add(sock.fileno(), self._on_event)

    def reply_buffer(self, index: int) -> memoryview:
        """Where the answer of slot `index` goes."""
        assert self._limits is not None
        return slot_view(self._replies, index, self._limits.reply_bytes)

    def answer(self, index: int, nbytes: int) -> None:
        """Send the answer of a slot that the server held."""
        if self.alive and self._limits is not None:
            self._outbox.append((index, _message(self._replies, index, self._limits.reply_bytes, nbytes)))
            self._on_event(0)

    def drop(self, why: str) -> None:
        """End this client."""
        if self.alive:
            self.alive = False
            _log.info("data-plane client %d left: %s", self.client, why)
            with contextlib.suppress(OSError):
                self._server.remove(self._socket.fileno())
            self._socket.close()
            self._server.strike_off(self.client)

    def _on_event(self, events: int) -> None:
        wanted = READ
        try:
            if not self._shaken and isinstance(self._socket, ssl.SSLSocket):
                self._socket.do_handshake()
                self._shaken = True
            wanted |= self._flush()
            if events:
                self._read()
        except ssl.SSLWantWriteError:
            wanted |= WRITE
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except (EOFError, OSError, KatsuraError) as error:
            self.drop(str(error) or "it closed")
        if self.alive and wanted != self._watched:
            self._server.expect(self._socket.fileno(), wanted)
            self._watched = wanted

    def _flush(self) -> int:
        while self._outbox:
            index, message = self._outbox[0]
            try:
                rest = message[self._socket.send(message) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                return WRITE
            if rest:
                self._outbox[0] = index, rest
            else:
                self._outbox.popleft()
                self._held.discard(index)  # only now may the client post this slot again
        return 0

    def _read(self) -> None:
        while self.alive:
            while self._missing:
                count = self._socket.recv_into(self._missing)
                if not count:
                    raise EOFError
                self._missing = self._missing[count:]
            self._filled()

    def _filled(self) -> None:
        if self._target is None:
            index, nbytes = _PREAMBLE.unpack(self._preamble)
            self._target = (index, self._landing(index, nbytes))
            self._missing = self._target[1]
            return
        index, frame = self._target
        self._target, self._missing = None, memoryview(self._preamble)
        if self._limits is None:
            self._greet(frame)
        else:
            self._held.add(index)
            self._server.arrived(_TcpRequest(self, index, frame, self._limits.reply_bytes))

    def _landing(self, index: int, nbytes: int) -> memoryview:
        if self._limits is None:
            if index != _GREETING_SLOT or not 0 < nbytes <= CONTROL_BYTES_MAX:
                raise BadFrameError("a connection begins with a HELLO")
            return memoryview(bytearray(nbytes))
        if index >= self._limits.credits or index in self._held or not 0 < nbytes <= self._limits.request_bytes:
            raise BadFrameError(f"it posted slot {index} with {nbytes} bytes, which it may not")
        return slot_view(self._requests, index, self._limits.request_bytes)[:nbytes]

    def _greet(self, hello: memoryview) -> None:
        limits, answer = self._server.greet(hello)
        self._outbox.append((_GREETING_SLOT, memoryview(_PREAMBLE.pack(_GREETING_SLOT, len(answer)) + answer)))
        self._flush()
        if limits is None:
            raise BadFrameError("refused")
        self._requests = private_region(limits, limits.request_bytes)
        self._replies = private_region(limits, limits.reply_bytes)
        self._limits = limits
        self._server.settle(self.client, self.drop)
