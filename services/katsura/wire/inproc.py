"""Both ends in one process, on two threads: the contract without a second process."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from katsura.wire.header import CONTROL_BYTES_MAX, Kind, control
from katsura.wire.ring import RingChannel, RingGreeting
from katsura.wire.server import Server
from katsura.wire.transport import (
    ChannelRetiredError,
    ChannelTimeoutError,
    Limits,
    private_region,
    read_welcome,
)


def connect(server: Server, hello: Mapping[str, Any], limits: Limits, timeout_s: float) -> RingChannel:
    """A channel to `server`, which another thread polls. Raises ChannelRetiredError or ChannelTimeoutError."""
    requests = private_region(limits, limits.request_bytes)
    replies = private_region(limits, limits.reply_bytes)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.settimeout(timeout_s)
        _Greeting(server, theirs, requests, replies)
        ours.send(control(Kind.HELLO, {**hello, **limits.as_json()}))
        welcome = read_welcome(ours.recv(CONTROL_BYTES_MAX))
        ours.settimeout(None)
    except TimeoutError as error:
        ours.close()
        raise ChannelTimeoutError(f"the server did not greet within {timeout_s:.3f} s") from error
    except (OSError, ChannelRetiredError) as error:
        ours.close()
        raise ChannelRetiredError(f"the server is not there or not willing: {error}") from error
    return RingChannel("inproc", ours, limits, welcome, requests, replies)


class _Greeting(RingGreeting):
    def __init__(self, server: Server, sock: socket.socket, requests: memoryview, replies: memoryview) -> None:
        self._memory = requests, replies
        super().__init__(server, sock)

    def _receive(self) -> memoryview:
        return memoryview(self._socket.recv(CONTROL_BYTES_MAX))

    def _map(self, limits: Limits) -> tuple[memoryview, memoryview]:
        return self._memory

    def _send(self, answer: bytes) -> None:
        self._socket.send(answer)
