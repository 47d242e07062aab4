"""The other process of `test_transport.py`: serves or posts one frame, and stops where the test wants to kill it.

It says where it is by a line on standard output and goes on at a line on standard input, so that no test sleeps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from katsura.wire import shm, tcp, tls
from katsura.wire.server import Server
from katsura.wire.transport import Channel, Limits, Request

LIMITS = Limits(credits=2, request_bytes=1 << 20, reply_bytes=1 << 20)


def say(line: str) -> None:
    print(line, flush=True)


def hold(where: str) -> None:
    say(where)
    sys.stdin.readline()


def tls_of(make: Callable[[Path, Path, Path], tls.Contexts], certificate: str) -> tls.Contexts:
    """One file holds certificate, key and authority."""
    return make(Path(certificate), Path(certificate), Path(certificate))


def listen(server: Server, backend: str, address: str, certificate: str) -> str:
    """Listen by `backend`; where clients find it."""
    if backend == "shm":
        shm.listen(server, address)
        return address
    return str(
        tcp.listen(server, "127.0.0.1", 0, tls_of(tls.server_contexts, certificate) if backend == "tls" else None)
    )


def connect(backend: str, address: str, certificate: str, limits: Limits = LIMITS, timeout_s: float = 20.0) -> Channel:
    if backend == "shm":
        return shm.connect(address, {"who": "test"}, limits, timeout_s)
    contexts = tls_of(tls.client_contexts, certificate) if backend == "tls" else None
    return tcp.connect("127.0.0.1", int(address), {"who": "test"}, limits, timeout_s, contexts)


def echo(request: Request) -> None:
    request.reply_buffer[: len(request.frame)] = request.frame
    request.answer(len(request.frame))


def half_an_answer(request: Request) -> None:
    half = len(request.frame) // 2
    request.reply_buffer[:half] = request.frame[:half]
    if type(request).__name__ == "_TcpRequest":
        message = tcp._message(request._peer._replies, request.slot, LIMITS.reply_bytes, len(request.frame))  # type: ignore[attr-defined]
        request._peer._socket.send(message[:half])  # type: ignore[attr-defined]
    hold("half answered")


def bad_doorbell(request: Request) -> None:
    request.slot = 1 - request.slot  # type: ignore[attr-defined]
    request.answer(64)


def too_long(request: Request) -> None:
    request.answer(LIMITS.reply_bytes + 64)


class OneLate:
    """Keeps the first request until the second is there, then answers both, the late one first."""

    def __init__(self) -> None:
        self.kept: Request | None = None

    def __call__(self, request: Request) -> None:
        if self.kept is None:
            self.kept = request
            say("keeping")
        else:
            echo(self.kept)
            echo(request)


def hold_before_answer(request: Request) -> None:
    hold("holding")
    echo(request)


BEHAVIOURS: dict[str, Callable[[Request], None]] = {
    "echo": echo,
    "hold": hold_before_answer,
    "half": half_an_answer,
    "wrong-slot": bad_doorbell,
    "too-long": too_long,
    "late": OneLate(),
    "silent": lambda request: say("ignoring"),
}


def serve(backend: str, address: str, certificate: str, behaviour: str) -> None:
    server = Server(LIMITS, lambda hello: {"you": hello["who"]})
    say(listen(server, backend, address, certificate))
    answer = BEHAVIOURS[behaviour]
    while True:
        for request in server.poll(60.0):
            answer(request)


def post(backend: str, address: str, certificate: str, stage: str) -> None:
    """Get as far as `stage` says and stay there."""
    channel = connect(backend, address, certificate)
    if stage == "connected":
        hold("connected")
    slot = channel.reserve(1 << 20)
    if stage == "reserved":
        hold("reserved")
    slot.request[: 1 << 19] = bytes([7]) * (1 << 19)
    if stage == "half written":
        if backend != "shm":
            message = tcp._message(channel._requests, slot.index, LIMITS.request_bytes, 1 << 20)  # type: ignore[attr-defined]
            channel._stream.socket.send(message[: 1 << 10])  # type: ignore[attr-defined]
        hold("half written")
    channel.post(slot, 1 << 20, 20.0)
    if stage == "posted":
        hold("posted")
    channel.wait(slot, 20.0)
    hold("answered")


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    {"serve": serve, "post": post}[role](*arguments)
