"""Shared memory between two processes of one machine (local mode, containers of one pod that share a socket folder).

Each end makes the memory that it writes: an anonymous memfd, sealed against resizing (a peer that truncates it would
kill us with SIGBUS) and against any further writable mapping, so that the kernel enforces one writer per ring. The
descriptor travels with the HELLO or the WELCOME over a unix SEQPACKET socket; afterwards that socket is the doorbell.
Who may connect is decided by the permissions of the socket's folder.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import mmap
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.wire.header import CONTROL_BYTES_MAX, BadFrameError, Kind, control
from katsura.wire.ring import RingChannel, RingGreeting
from katsura.wire.server import Server
from katsura.wire.transport import ChannelRetiredError, ChannelTimeoutError, Limits, read_welcome, region_bytes

_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; Python 3.11's fcntl does not name it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | _F_SEAL_FUTURE_WRITE
_BACKLOG = 64
_SOCKET_MODE = 0o660

_log = logging.getLogger(__name__)


def connect(path: str, hello: Mapping[str, Any], limits: Limits, timeout_s: float) -> RingChannel:
    """A channel to the server that listens at `path`.

    Raises ChannelRetiredError or ChannelTimeoutError if the server is not there or not willing.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
        requests, requests_fd = _make_region(region_bytes(limits, limits.request_bytes))
        try:
            socket.send_fds(sock, [control(Kind.HELLO, {**hello, **limits.as_json()})], [requests_fd])
        finally:
            os.close(requests_fd)
        message, fds = _receive(sock, 0)
        try:
            welcome = read_welcome(message)
            replies = _map_region(fds, region_bytes(limits, limits.reply_bytes))
        finally:
            _close_all(fds)
        sock.settimeout(None)
        return RingChannel("shm", sock, limits, welcome, requests, replies)
    except TimeoutError as error:
        sock.close()
        raise ChannelTimeoutError(f"nobody answered at {path} within {timeout_s:.3f} s") from error
    except OSError as error:
        sock.close()
        raise ChannelRetiredError(f"cannot reach {path}: {error}") from error
    except KatsuraError:
        sock.close()
        raise


def listen(server: Server, path: str) -> None:
    """Accept clients of `server` at the socket `path`; a socket file left behind by a dead server is replaced."""
    with contextlib.suppress(FileNotFoundError):
        Path(path).unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise UnavailableError(f"cannot listen at {path}: {error}; choose a shorter or a writable path") from error
    Path(path).chmod(_SOCKET_MODE)
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    _Listener(server, sock, path)


class _Listener:
    def __init__(self, server: Server, sock: socket.socket, path: str) -> None:
        self._server, self._socket, self._path = server, sock, path
        server.add(sock.fileno(), self._on_event)
        server.on_close(self._close)

    def _on_event(self, events: int) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError as error:
            _log.warning("cannot accept a data-plane client at %s: %s", self._path, error)
            return
        _Greeting(self._server, sock)

    def _close(self) -> None:
        self._server.remove(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            Path(self._path).unlink()


class _Greeting(RingGreeting):
    _fds: list[int]
    _replies_fd: int = -1

    def _receive(self) -> memoryview:
        message, self._fds = _receive(self._socket, 0)
        return memoryview(message)

    def _map(self, limits: Limits) -> tuple[memoryview, memoryview]:
        requests = _map_region(self._fds, region_bytes(limits, limits.request_bytes))
        replies, self._replies_fd = _make_region(region_bytes(limits, limits.reply_bytes))
        return requests, replies

    def _send(self, answer: bytes) -> None:
        socket.send_fds(self._socket, [answer], [] if self._replies_fd < 0 else [self._replies_fd])

    def _on_event(self, events: int) -> None:
        self._fds = []
        try:
            super()._on_event(events)
        finally:
            _close_all(self._fds + ([] if self._replies_fd < 0 else [self._replies_fd]))


def _make_region(nbytes: int) -> tuple[memoryview, int]:
    """Memory that only this process can ever write, and the descriptor to pass on (close it afterwards)."""
    fd = os.memfd_create("katsura-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    region = memoryview(mmap.mmap(fd, nbytes))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return region, fd


def _map_region(fds: list[int], nbytes: int) -> memoryview:
    """Map a peer's memory read-only. Raises BadFrameError unless it is sealed and large enough."""
    if len(fds) != 1:
        raise BadFrameError(f"a greeting carries one descriptor, not {len(fds)}")
    try:
        seals = fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError as error:
        raise BadFrameError(f"the peer's memory is no memfd: {error}") from error
    if seals & _SEALS != _SEALS or os.fstat(fds[0]).st_size < nbytes:
        raise BadFrameError(f"the peer's memory is not sealed (seals {seals:#x}) or smaller than {nbytes} bytes")
    return memoryview(mmap.mmap(fds[0], nbytes, access=mmap.ACCESS_READ))


def _receive(sock: socket.socket, flags: int) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it. Raises BadFrameError if either was cut short."""
    fds = array.array("i")
    message, ancillary, flags, _ = sock.recvmsg(
        CONTROL_BYTES_MAX, socket.CMSG_LEN(4 * fds.itemsize), flags | socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close_all(list(fds))
        raise BadFrameError("the greeting is too long, or carries too many descriptors")
    return message, list(fds)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
