"""The pipe between two halves: whole messages, in order, and end of file is death."""

from __future__ import annotations

import asyncio
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from katsura.domain.errors import InternalError
from katsura.wire import pipe as pipe_module
from katsura.wire.pipe import AsyncPipe, PeerDiedError, Pipe, spawn


def pair() -> tuple[Pipe, Pipe]:
    ours, theirs = socket.socketpair()
    return Pipe(ours), Pipe(theirs)


def test_messages_arrive_whole_and_in_order() -> None:
    a, b = pair()
    messages = [{"n": n, "tokens": list(range(n))} for n in (0, 1, 500)]
    for message in messages:
        a.send(message)
    assert [b.receive(5.0) for _ in messages] == messages
    assert b.receive(0.0) is None
    a.close()
    b.close()


def test_a_long_message_passes_while_both_halves_send() -> None:
    a, b = pair()
    long = {"text": "x" * 3_000_000}

    def exchange(end: Pipe) -> object:
        end.send(long)
        return end.receive(60.0)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(exchange, (a, b))) == [long, long]
    a.close()
    b.close()


def test_what_was_sent_before_death_is_still_read() -> None:
    a, b = pair()
    a.send({"last": 1})
    a.close()
    assert b.receive(5.0) == {"last": 1}
    with pytest.raises(PeerDiedError):
        b.receive(5.0)
    with pytest.raises(PeerDiedError):
        b.send({})
    b.close()


def test_a_half_that_never_reads_is_as_good_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_module, "SEND_TIMEOUT_S", 0.01)
    a, b = pair()
    with pytest.raises(PeerDiedError, match="has not read"):
        a.send({"text": "x" * 10_000_000})
    a.close()
    b.close()


def test_an_insane_length_is_not_believed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(PeerDiedError, match="not sane"):
            Pipe(ours).receive(5.0)


def test_a_message_that_is_not_json_is_our_bug() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="not JSON compliant"):
        a.send({"x": float("nan")})
    a.close()
    b.close()


def test_a_message_beyond_the_limit_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe_module, "MESSAGE_BYTES_MAX", 10)
    a, b = pair()
    with pytest.raises(InternalError):
        a.send({"text": "x" * 20})
    a.close()
    b.close()


async def test_the_asyncio_end_speaks_the_same() -> None:
    ours, theirs = socket.socketpair()
    sync = Pipe(theirs)
    end = await AsyncPipe.open(ours)
    await end.send({"hello": 1})
    assert await asyncio.to_thread(sync.receive, 5.0) == {"hello": 1}
    sync.send({"n": 1})
    sync.send({"n": 2})
    sync.close()
    assert [await end.receive(), await end.receive()] == [{"n": 1}, {"n": 2}]
    with pytest.raises(PeerDiedError):
        await anext(end)
    await end.close()


def test_a_spawned_half_talks_and_dies_with_its_pipe(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "import sys\n"
        "from katsura.wire.pipe import Pipe, PeerDiedError\n"
        "pipe = Pipe.inherited(int(sys.argv[1]))\n"
        "try:\n"
        "    while True:\n"
        "        pipe.send({'twice': 2 * pipe.receive(None)['n']})\n"
        "except PeerDiedError:\n"
        "    sys.exit(17)\n"
    )
    child, sock = spawn("half", {**os.environ, "PYTHONPATH": str(tmp_path)})
    end = Pipe(sock)
    end.send({"n": 21})
    assert end.receive(30.0) == {"twice": 42}
    end.close()
    assert child.wait(30.0) == 17
