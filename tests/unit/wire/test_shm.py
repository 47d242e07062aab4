"""Shared memory that a peer could pull away or write into is not accepted, and ours cannot be."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from katsura.wire import shm
from katsura.wire.header import Kind, control, read_control, read_header
from katsura.wire.server import Server
from katsura.wire.transport import ChannelRetiredError, Limits

LIMITS = Limits(1, 8192, 8192)
ALL_SEALS = shm._SEALS


@pytest.fixture
def listening() -> Iterator[tuple[Server, str]]:
    with tempfile.TemporaryDirectory(prefix="kw") as folder:
        server = Server(LIMITS, lambda hello: {})
        shm.listen(server, f"{folder}/s")
        yield server, f"{folder}/s"
        server.close()


def memory(nbytes: int, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def holders(fd: int) -> int:
    """How many descriptors of this process stand for what `fd` stands for."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed since: other tests' leftovers are collected at any time
            found += os.path.sameopenfile(int(name), fd)
    return found


def greet(server: Server, path: str, *fds: int) -> tuple[bytes, list[int]]:
    """Say HELLO with these descriptors; what the server answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        socket.send_fds(sock, [control(Kind.HELLO, LIMITS.as_json())], list(fds))
        server.poll(30.0)
        server.poll(30.0)
        message, received, _, _ = socket.recv_fds(sock, 65536, 4)
        return message, list(received)


def test_sealed_memory_is_welcome_and_answered_with_memory_that_only_the_server_writes(
    listening: tuple[Server, str],
) -> None:
    fd = memory(1 << 16, ALL_SEALS)
    message, received = greet(*listening, fd)
    assert read_header(memoryview(message)).kind is Kind.WELCOME
    with pytest.raises(PermissionError):
        mmap.mmap(received[0], 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(received[0], 0)
    os.close(fd)
    os.close(received[0])


@pytest.mark.parametrize("lacking", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, 0x10])
def test_memory_that_lacks_a_seal_is_refused(listening: tuple[Server, str], lacking: int) -> None:
    fd = memory(1 << 16, ALL_SEALS & ~lacking)
    assert greet(*listening, fd) == (b"", [])
    assert listening[0].client_count == 0
    os.close(fd)


def test_memory_shorter_than_the_slots_is_refused(listening: tuple[Server, str]) -> None:
    fd = memory(4096, ALL_SEALS)
    assert greet(*listening, fd) == (b"", [])
    os.close(fd)


def test_a_file_is_no_memory(listening: tuple[Server, str]) -> None:
    with tempfile.TemporaryFile(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as file:
        file.truncate(1 << 16)
        assert greet(*listening, file.fileno()) == (b"", [])


@pytest.mark.parametrize("count", [0, 2, 7])
def test_a_greeting_with_another_number_of_descriptors_is_refused_and_leaks_none(
    listening: tuple[Server, str], count: int
) -> None:
    fds = [memory(1 << 16, ALL_SEALS) for _ in range(count)]
    assert greet(*listening, *fds) == (b"", [])
    assert [holders(fd) for fd in fds] == [1] * count
    assert listening[0].client_count == 0
    for fd in fds:
        os.close(fd)


def test_a_client_refuses_a_server_that_sends_unsealed_memory() -> None:
    with tempfile.TemporaryDirectory(prefix="kw") as folder:
        path = f"{folder}/s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen()
            fd = memory(1 << 16, 0)

            def serve() -> None:
                sock, _ = listener.accept()
                with sock:
                    _, fds, _, _ = socket.recv_fds(sock, 65536, 4)
                    socket.send_fds(sock, [control(Kind.WELCOME, LIMITS.as_json())], [fd])
                    for each in fds:
                        os.close(each)
                    sock.recv(1)

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(Exception, match="not sealed"):
                shm.connect(path, {}, LIMITS, 30.0)
            thread.join()
            os.close(fd)


def test_a_refusal_is_told_to_the_client(listening: tuple[Server, str]) -> None:
    server, path = listening
    thread = threading.Thread(target=lambda: [server.poll(30.0) for _ in range(2)])
    thread.start()
    with pytest.raises(ChannelRetiredError, match="grants"):
        shm.connect(path, {}, Limits(2, 8192, 8192), 30.0)
    thread.join()


def test_a_socket_file_left_by_a_dead_server_is_replaced(listening: tuple[Server, str]) -> None:
    other = Server(LIMITS, lambda hello: {})
    shm.listen(other, listening[1])
    message, received = greet(other, listening[1], fd := memory(1 << 16, ALL_SEALS))
    assert read_control(memoryview(message), read_header(memoryview(message)))["credits"] == 1
    other.close()
    for each in (fd, *received):
        os.close(each)
