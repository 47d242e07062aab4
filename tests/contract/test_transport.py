"""One suite over every transport: what `katsura.wire.transport` promises, with real processes for shm, tcp and TLS."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from katsura.domain.errors import InternalError, OutOfRangeError, ResourceExhaustedError
from katsura.wire import inproc, tcp, tls
from katsura.wire.server import Server
from katsura.wire.transport import Channel, ChannelRetiredError, ChannelTimeoutError, Limits

sys.path.insert(0, str(Path(__file__).parent))
import wire_peer
from wire_peer import LIMITS

T = TypeVar("T")
PATIENCE_S = 30.0
ACROSS_PROCESSES = ["shm", "tcp", "tls"]


class Peer:
    """A child process that says a line and waits for one."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "wire_peer.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        self.kill()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


class House:
    """Starts servers and clients of one backend and ends them all."""

    def __init__(self, backend: str, folder: Path, certificate: str) -> None:
        self.backend = backend
        self._folder = folder
        self._certificate = certificate
        self._peers: list[Peer] = []
        self._stops: list[Callable[[], None]] = []
        self.address = str(folder / "member.sock")
        self.server: Server | None = None

    def serve(self, behaviour: str) -> Peer:
        peer = self._peer("serve", str(self._folder / f"{len(self._peers)}.sock"), behaviour)
        self.address = peer.line()
        return peer

    def serve_echo(self) -> None:
        """Any backend: another process, or another thread for inproc."""
        if self.backend != "inproc":
            self.serve("echo")
            return
        self.server = server = self.own_server()
        stop = threading.Event()

        def loop() -> None:
            while not stop.is_set():
                for request in server.poll(0.05):
                    wire_peer.echo(request)

        thread = threading.Thread(target=loop)
        thread.start()

        def end() -> None:
            stop.set()
            thread.join()

        self._stops.insert(0, end)

    def own_server(self) -> Server:
        server = Server(LIMITS, lambda hello: {"you": hello["who"]})
        self._stops.append(server.close)
        if self.backend != "inproc":
            self.address = wire_peer.listen(server, self.backend, self.address, self._certificate)
        return server

    def post(self, stage: str) -> Peer:
        return self._peer("post", self.address, stage)

    def connect(self, limits: Limits = LIMITS, timeout_s: float = PATIENCE_S) -> Channel:
        if self.backend == "inproc":
            assert self.server is not None
            channel: Channel = inproc.connect(self.server, {"who": "test"}, limits, timeout_s)
        else:
            channel = wire_peer.connect(self.backend, self.address, self._certificate, limits, timeout_s)
        self._stops.insert(0, lambda: channel.retire("the test ends"))
        return channel

    def end(self) -> None:
        for stop in self._stops:
            stop()
        for peer in self._peers:
            peer.end()

    def _peer(self, role: str, address: str, what: str) -> Peer:
        peer = Peer(role, self.backend, address, self._certificate, what)
        self._peers.append(peer)
        return peer


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file: key, certificate and authority, good for both ends."""
    path = tmp_path_factory.mktemp("tls") / "all.pem"
    issue(path)
    return str(path)


def issue(path: Path) -> None:
    """A certificate of a new authority, in one step."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    path.with_suffix(".new").write_bytes(issued.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
    path.with_suffix(".new").rename(path)


@pytest.fixture
def open_house(certificate: str) -> Iterator[Callable[[str], House]]:
    houses: list[House] = []
    with tempfile.TemporaryDirectory(prefix="kw") as folder:

        def opened(backend: str) -> House:
            houses.append(House(backend, Path(folder), certificate))
            return houses[-1]

        yield opened
        for house in houses:
            house.end()


@pytest.fixture(params=["inproc", *ACROSS_PROCESSES])
def house(request: pytest.FixtureRequest, open_house: Callable[[str], House]) -> House:
    return open_house(request.param)


@pytest.fixture(params=ACROSS_PROCESSES)
def far(request: pytest.FixtureRequest, open_house: Callable[[str], House]) -> House:
    return open_house(request.param)


def ask(channel: Channel, payload: bytes, timeout_s: float = PATIENCE_S) -> bytes:
    slot = channel.reserve(len(payload))
    slot.request[: len(payload)] = payload
    channel.post(slot, len(payload), timeout_s)
    answer = bytes(channel.wait(slot, timeout_s))
    channel.release(slot)
    return answer


def attend(server: Server, action: Callable[[], T]) -> T:
    """Echo on this thread while `action` runs on another; what it returned or raised."""
    rings, rung = socket.socketpair()
    with rings, rung, ThreadPoolExecutor(1) as pool:
        server.add(rung.fileno(), lambda events: None)
        running = pool.submit(action)
        running.add_done_callback(lambda done: rings.close())
        while not running.done():
            for request in server.poll(PATIENCE_S):
                wire_peer.echo(request)
        server.remove(rung.fileno())
        return running.result()


def serve_until_alone(server: Server) -> None:
    """Poll until the server has noticed that its clients are gone."""
    while server.client_count:
        server.poll(PATIENCE_S)


def test_frames_of_every_size_come_back_unchanged(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    for size in (1, 63, 64, 65, 4095, 4096, 4097, 65536, 262144 + 5, LIMITS.request_bytes):
        payload = random.Random(size).randbytes(size)
        assert ask(channel, payload) == payload


def test_the_welcome_carries_what_the_server_says_of_itself(house: House) -> None:
    house.serve_echo()
    assert house.connect().welcome["you"] == "test"


def test_slots_are_aligned_as_frames_want_them(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    for slot in (channel.reserve(1), channel.reserve(1)):
        assert ctypes.addressof(ctypes.c_char.from_buffer(slot.request)) % 64 == 0


def test_many_clients_at_once_each_get_their_own_answers(house: House) -> None:
    house.serve_echo()
    failures: list[BaseException] = []

    def client(seed: int) -> None:
        try:
            channel = house.connect()
            dice = random.Random(seed)
            for _ in range(40):
                payload = dice.randbytes(dice.randrange(1, 50_000))
                assert ask(channel, payload) == payload
        except BaseException as error:  # noqa: BLE001 (reported by the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_two_frames_in_flight_are_told_apart(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    slots = [channel.reserve(5), channel.reserve(5)]
    for slot, text in zip(slots, (b"first", b"other"), strict=True):
        slot.request[:5] = text
        channel.post(slot, 5, PATIENCE_S)
    assert bytes(channel.wait(slots[1], PATIENCE_S)) == b"other"
    assert bytes(channel.wait(slots[0], PATIENCE_S)) == b"first"


def test_polling_reports_every_answer_once(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    slots = [channel.reserve(1), channel.reserve(1)]
    for slot in slots:
        channel.post(slot, 1, PATIENCE_S)
    seen = {channel.poll(PATIENCE_S), channel.poll(PATIENCE_S)}
    assert seen == set(slots)
    assert channel.poll(0.0) is None


def test_an_answered_slot_is_posted_again_and_no_other_is(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    slot, other = channel.reserve(8), channel.reserve(8)
    for size in (8, 8, 5, 8, 8):
        for each in (slot, other):
            each.request[:size] = random.Random(size + each.index).randbytes(size)
            channel.post(each, size, PATIENCE_S)
            with pytest.raises(InternalError, match="POSTED"):
                channel.post(each, size, PATIENCE_S)
        # In either order: the answer to the other one comes in first, and waits until it is asked for.
        assert channel.wait(other, PATIENCE_S) == other.request[:size]
        assert channel.wait(slot, PATIENCE_S) == slot.request[:size]
        assert channel.credits == LIMITS.credits - 2
    channel.release(slot)
    with pytest.raises(InternalError, match="FREE"):
        channel.post(slot, 8, PATIENCE_S)
    with pytest.raises(InternalError, match="FREE"):
        channel.reply(slot)
    assert channel.credits == LIMITS.credits - 1


def test_no_credit_is_an_error_and_releasing_brings_it_back(house: House) -> None:
    house.serve_echo()
    channel = house.connect()
    slots = [channel.reserve(1) for _ in range(LIMITS.credits)]
    assert channel.credits == 0
    with pytest.raises(ResourceExhaustedError):
        channel.reserve(1)
    channel.release(slots[0])
    assert channel.credits == 1
    assert ask(channel, b"again") == b"again"


def test_a_frame_longer_than_a_slot_is_refused_before_it_is_written(house: House) -> None:
    house.serve_echo()
    with pytest.raises(OutOfRangeError):
        house.connect().reserve(LIMITS.request_bytes + 1)


def test_asking_for_more_than_the_server_grants_is_refused(house: House) -> None:
    house.serve_echo()
    with pytest.raises(ChannelRetiredError, match="grants"):
        house.connect(Limits(credits=3, request_bytes=4096, reply_bytes=4096))
    assert ask(house.connect(), b"others are served") == b"others are served"


def test_smaller_limits_are_granted_and_kept(house: House) -> None:
    house.serve_echo()
    channel = house.connect(Limits(credits=1, request_bytes=5000, reply_bytes=5000))
    assert ask(channel, bytes(5000)) == bytes(5000)


@pytest.mark.parametrize("stage", ["connected", "reserved", "half written", "posted", "answered"])
def test_a_client_killed_at_any_point_is_forgotten_and_others_are_served(far: House, stage: str) -> None:
    server = far.own_server()
    peer = far.post(stage)
    assert attend(server, peer.line) == stage
    peer.kill()
    serve_until_alone(server)
    assert attend(server, lambda: ask(far.connect(), b"still here")) == b"still here"


@pytest.mark.parametrize(("behaviour", "said"), [("hold", "holding"), ("half", "half answered")])
def test_a_server_killed_before_or_while_answering_retires_the_channel(far: House, behaviour: str, said: str) -> None:
    peer = far.serve(behaviour)
    channel = far.connect()
    slot = channel.reserve(1000)
    channel.post(slot, 1000, PATIENCE_S)
    assert peer.line() == said
    peer.kill()
    with pytest.raises(ChannelRetiredError):
        channel.wait(slot, PATIENCE_S)
    assert channel.retired is not None
    for use in (lambda: channel.reserve(1), lambda: channel.reply(slot), lambda: channel.poll(0.0)):
        with pytest.raises(ChannelRetiredError):
            use()
    assert channel.credits == 0
    far.serve("echo")
    assert ask(far.connect(), b"a new channel works") == b"a new channel works"


def test_a_server_killed_while_idle_is_noticed_by_the_next_use(far: House) -> None:
    peer = far.serve("echo")
    channel = far.connect()
    assert ask(channel, b"hello") == b"hello"
    peer.kill()
    with pytest.raises(ChannelRetiredError):
        ask(channel, b"anyone?")
    assert channel.retired is not None


def test_a_stopped_server_is_a_timeout_and_the_channel_is_retired(far: House) -> None:
    peer = far.serve("echo")
    channel = far.connect()
    os.kill(peer.process.pid, signal.SIGSTOP)
    slot = channel.reserve(4096)
    channel.post(slot, 4096, PATIENCE_S)
    with pytest.raises(ChannelTimeoutError):
        channel.wait(slot, 0.05)
    assert channel.retired is not None
    with pytest.raises(ChannelRetiredError):
        channel.wait(slot, PATIENCE_S)
    os.kill(peer.process.pid, signal.SIGCONT)
    assert ask(far.connect(), b"awake") == b"awake"


def test_a_stopped_server_does_not_hang_a_client_that_connects(far: House) -> None:
    peer = far.serve("echo")
    os.kill(peer.process.pid, signal.SIGSTOP)
    with pytest.raises(ChannelTimeoutError):
        far.connect(timeout_s=0.05)


def test_a_large_frame_to_a_stopped_server_ends_at_its_deadline(far: House) -> None:
    peer = far.serve("echo")
    channel = far.connect()
    os.kill(peer.process.pid, signal.SIGSTOP)
    with pytest.raises(ChannelTimeoutError):
        ask(channel, bytes(LIMITS.request_bytes), timeout_s=0.05)


def test_a_late_answer_is_never_read_as_an_answer_to_something_else(far: House) -> None:
    peer = far.serve("late")
    channel = far.connect()
    slot = channel.reserve(3)
    slot.request[:3] = b"old"
    channel.post(slot, 3, PATIENCE_S)
    assert peer.line() == "keeping"
    with pytest.raises(ChannelTimeoutError):
        channel.wait(slot, 0.01)
    assert ask(far.connect(), b"new") == b"new"


@pytest.mark.parametrize("behaviour", ["wrong-slot", "too-long"])
def test_an_answer_that_was_not_asked_for_retires_the_channel(far: House, behaviour: str) -> None:
    far.serve(behaviour)
    channel = far.connect()
    slot = channel.reserve(10)
    channel.post(slot, 10, PATIENCE_S)
    with pytest.raises(ChannelRetiredError):
        channel.wait(slot, PATIENCE_S)


@pytest.mark.parametrize(("index", "nbytes"), [(LIMITS.credits, 64), (2**31, 64), (0, LIMITS.request_bytes + 1)])
def test_a_client_that_rings_for_what_it_has_not_is_dropped(far: House, index: int, nbytes: int) -> None:
    far.serve("echo")
    good, bad = far.connect(), far.connect()
    if far.backend == "shm":
        bad._ring(index, nbytes, 0.0)  # type: ignore[attr-defined]
    else:
        bad._stream.send(memoryview(index.to_bytes(4, "little") + nbytes.to_bytes(4, "little")), 0.0)  # type: ignore[attr-defined]
    with pytest.raises(ChannelRetiredError):
        bad.poll(PATIENCE_S)
    assert ask(good, b"unharmed") == b"unharmed"


def test_a_slot_posted_twice_is_dropped_by_the_server(far: House) -> None:
    far.serve("silent")
    channel = far.connect()
    slot = channel.reserve(8)
    channel.post(slot, 8, PATIENCE_S)
    channel._ring(slot.index, 8, PATIENCE_S)  # type: ignore[attr-defined]
    with pytest.raises(ChannelRetiredError):
        channel.poll(PATIENCE_S)


def test_a_stopped_client_does_not_delay_the_others(far: House) -> None:
    server = far.own_server()
    peer = far.post("posted")
    assert attend(server, peer.line) == "posted"
    os.kill(peer.process.pid, signal.SIGSTOP)
    channel = attend(server, far.connect)
    for size in (1, 1000, LIMITS.request_bytes):
        assert attend(server, lambda size=size: ask(channel, bytes(size))) == bytes(size)


def test_a_server_that_closes_ends_its_clients(house: House) -> None:
    house.server = house.own_server()
    channel = attend(house.server, house.connect)
    house.server.close()
    with pytest.raises(ChannelRetiredError):
        channel.poll(PATIENCE_S)


def test_requests_of_a_client_that_left_are_answered_into_the_void(house: House) -> None:
    house.server = house.own_server()
    channel = attend(house.server, house.connect)
    channel.post(channel.reserve(8), 8, PATIENCE_S)
    request = house.server.poll(PATIENCE_S)[0]
    channel.retire("enough")
    serve_until_alone(house.server)
    assert not request.alive
    wire_peer.echo(request)


def test_a_silent_connection_is_dropped_and_a_greeted_one_is_not(far: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("katsura.wire.server.HANDSHAKE_S", -1.0)
    server = far.own_server()
    family = socket.AF_UNIX if far.backend == "shm" else socket.AF_INET
    kind = socket.SOCK_SEQPACKET if far.backend == "shm" else socket.SOCK_STREAM
    with socket.socket(family, kind) as mute:
        mute.connect(far.address if far.backend == "shm" else ("127.0.0.1", int(far.address)))
        server.poll(PATIENCE_S)
        assert server.client_count == 0
        assert mute.recv(1) == b""


@pytest.mark.parametrize("greeting", [b"", b"x", bytes(64), b"GET / HTTP/1.1\r\n\r\n" * 4, b"\xff" * 65536])
def test_a_garbage_greeting_harms_nobody(far: House, greeting: bytes) -> None:
    far.serve("echo")
    channel = far.connect()
    if far.backend == "shm":
        mute = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mute.connect(far.address)
    else:
        mute = socket.create_connection(("127.0.0.1", int(far.address)))
    with mute, contextlib.suppress(OSError):  # the server may be quicker to close than we to send
        if greeting:
            mute.sendall(greeting)
        mute.shutdown(socket.SHUT_WR)
        while mute.recv(1 << 16):
            pass
    assert ask(channel, b"unharmed") == b"unharmed"


def test_a_client_without_a_certificate_of_our_authority_is_not_let_in(
    open_house: Callable[[str], House], certificate: str
) -> None:
    house = open_house("tls")
    house.serve("echo")
    stranger = ssl.create_default_context(cafile=certificate)
    stranger.check_hostname = False
    strangers = [None, lambda: stranger]
    for contexts in strangers:
        with pytest.raises((ChannelRetiredError, ChannelTimeoutError)):
            tcp.connect("127.0.0.1", int(house.address), {"who": "x"}, LIMITS, 2.0, contexts)


def test_both_ends_read_a_renewed_certificate_and_old_channels_go_on(
    open_house: Callable[[str], House], certificate: str
) -> None:
    house = open_house("tls")
    house.serve("echo")
    before = house.connect()
    old = tls.client_contexts(*[Path(certificate)] * 3)()
    issue(Path(certificate))
    assert ask(house.connect(), b"new") == b"new"
    assert ask(before, b"old") == b"old"
    with pytest.raises((ChannelRetiredError, ChannelTimeoutError)):
        tcp.connect("127.0.0.1", int(house.address), {"who": "x"}, LIMITS, 2.0, lambda: old)
