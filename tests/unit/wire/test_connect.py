"""Choosing a transport: shm before tcp, a clean fall-back that says why, and no plain text off loopback."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from katsura.domain.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from katsura.wire import shm, tcp
from katsura.wire.connect import Endpoint, connect
from katsura.wire.server import Server
from katsura.wire.transport import ChannelRetiredError, Limits

LIMITS = Limits(1, 4096, 4096)


@pytest.fixture
def member() -> Iterator[tuple[str, str]]:
    """A served member: its shm and tcp endpoints."""
    with tempfile.TemporaryDirectory(prefix="kw") as folder:
        server = Server(LIMITS, lambda hello: {})
        shm.listen(server, f"{folder}/m.sock")
        port = tcp.listen(server, "127.0.0.1", 0)
        rings, rung = socket.socketpair()
        stop: list[bool] = []
        server.add(rung.fileno(), lambda events: stop.append(True))

        def serve() -> None:
            while not stop:
                server.poll(60.0)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"shm:{folder}/m.sock", f"tcp:127.0.0.1:{port}"
        rings.send(b"x")
        thread.join()
        server.close()
        rings.close()
        rung.close()


def test_shared_memory_is_preferred(member: tuple[str, str]) -> None:
    channel, how = connect([member[1], member[0]], {}, LIMITS, 30.0)
    assert channel.transport == "shm"
    assert how.startswith("shm to ")
    channel.retire("done")


def test_where_the_socket_is_not_seen_tcp_is_used_and_said(member: tuple[str, str]) -> None:
    channel, how = connect(["shm:/nowhere/m.sock", member[1]], {}, LIMITS, 30.0)
    assert channel.transport == "tcp"
    assert "/nowhere/m.sock is not on this machine" in how
    channel.retire("done")


def test_a_dead_socket_file_falls_back_too(member: tuple[str, str], tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kw") as folder:
        dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        dead.bind(f"{folder}/dead.sock")
        dead.close()
        channel, how = connect([f"shm:{folder}/dead.sock", member[1]], {}, LIMITS, 30.0)
    assert channel.transport == "tcp"
    assert "refused" in how
    channel.retire("done")


def test_when_nothing_works_every_reason_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ChannelRetiredError, match=r"shm: .*; tcp: cannot reach") as caught:
            connect(["shm:/nowhere", f"tcp:127.0.0.1:{port}"], {}, LIMITS, 5.0)
    assert "/nowhere" in caught.value.message


@pytest.mark.parametrize("text", ["", "shm:", "tcp:", "tcp:host", "tcp:host:0", "tcp:host:x", "tcp::80", "udp:a:1"])
def test_a_malformed_endpoint_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="shm:<path>"):
        Endpoint.parse(text)


def test_endpoints_are_read() -> None:
    assert Endpoint.parse("tcp:[::1]:80") == Endpoint("tcp", "::1", 80)
    assert Endpoint.parse("shm:/a:b/c.sock") == Endpoint("shm", "/a:b/c.sock")


def test_plain_text_off_loopback_is_refused() -> None:
    server = Server(LIMITS, lambda hello: {})
    with pytest.raises(FailedPreconditionError, match="TLS"):
        tcp.listen(server, "0.0.0.0", 0)
    server.close()


def test_a_taken_port_is_said_plainly() -> None:
    server = Server(LIMITS, lambda hello: {})
    port = tcp.listen(server, "127.0.0.1", 0)
    with pytest.raises(UnavailableError, match="choose another port"):
        tcp.listen(server, "127.0.0.1", port)
    server.close()


def test_a_socket_path_that_cannot_be_is_said_plainly(tmp_path: Path) -> None:
    server = Server(LIMITS, lambda hello: {})
    with pytest.raises(UnavailableError, match="choose a shorter"):
        shm.listen(server, str(tmp_path / ("x" * 200)))
    server.close()
