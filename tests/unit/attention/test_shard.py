"""The RPC half over a real pipe; the test plays the compute half."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.core.plan import Failed, Load
from katsura.attention.messages import Done, Drawn, Report, Timing
from katsura.attention.shard import Decoded, Rates, Shard
from katsura.domain.errors import CancelledError, NotFoundError, Reason, UnavailableError
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.testing.compute import OWNER, environment
from katsura.wire.pipe import AsyncPipe

SHAPE = ModelShape("llama", 3, 48, 6, 2, 8, 64, 0, 0, 199, 512)


@dataclass
class Halves:
    shard: Shard
    compute: AsyncPipe

    async def command(self) -> messages.Command:
        return messages.read_command(await asyncio.wait_for(self.compute.receive(), 10))

    async def report(self, *answers: messages.Answer, **more: object) -> None:
        await self.compute.send(messages.write_report(Report(answers, **more)))  # type: ignore[arg-type]


@pytest.fixture
async def halves() -> AsyncIterator[Halves]:
    ours, theirs = socket.socketpair()
    config = ShardConfig.from_env(environment(Path("m"), UNREAD_S=0.04), "attention")
    hello = messages.Hello(bytes(32), SHAPE, FfnLayout(8, 4), 512, 64)
    pipe, compute = await AsyncPipe.open(ours), await AsyncPipe.open(theirs)
    shard = Shard(config, hello, "", pipe)
    tasks = [asyncio.create_task(shard.listen()), asyncio.create_task(shard.watch_readers())]
    yield Halves(shard, compute)
    await compute.close()
    await pipe.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_an_answer_finds_its_call_among_many(halves: Halves) -> None:
    asks = [asyncio.create_task(halves.shard.ask(lambda call: messages.Delete(call, OWNER, "s"))) for _ in range(3)]
    calls = [(await halves.command()).call for _ in asks]  # type: ignore[union-attr]
    gone = NotFoundError("no such sequence", reason=Reason.SEQUENCE_NOT_FOUND, field="sequence_id")
    await halves.report(Done(calls[2], 5), Failed(calls[0], gone), Done(calls[1]))
    assert await asks[2] == Done(calls[2], 5)
    assert await asks[1] == Done(calls[1])
    with pytest.raises(NotFoundError) as caught:
        await asks[0]
    assert (caught.value.reason, caught.value.field) == (Reason.SEQUENCE_NOT_FOUND, "sequence_id")


async def test_answers_that_nobody_takes_cancel_their_call(halves: Halves) -> None:
    with halves.shard.call() as call:
        await halves.report(Drawn(call.number, 0, 7, None))
        assert await halves.command() == messages.Cancel(call.number)
        assert await call.take() == [Drawn(call.number, 0, 7, None)]
        with pytest.raises(CancelledError) as caught:
            await call.take()
    assert caught.value.reason is Reason.UNREAD_STREAM


async def test_a_call_that_waits_for_its_first_answer_is_not_unread(halves: Halves) -> None:
    with halves.shard.call() as call:
        taking = asyncio.create_task(call.take())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(taking), 0.2)
        await halves.report(Drawn(call.number, 0, 7, None))
        assert await asyncio.wait_for(taking, 60) == [Drawn(call.number, 0, 7, None)]


async def test_a_call_left_early_is_cancelled(halves: Halves) -> None:
    asking = asyncio.create_task(halves.shard.ask(lambda call: messages.Delete(call, OWNER, "s")))
    delete = await halves.command()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(delete, messages.Delete)
    assert await halves.command() == messages.Cancel(delete.call)
    assert halves.shard.active_count == 0


async def test_the_death_of_the_compute_half_fails_every_call(halves: Halves) -> None:
    asking = asyncio.create_task(halves.shard.ask(lambda call: messages.Delete(call, OWNER, "s")))
    await halves.command()
    await halves.compute.close()
    with pytest.raises(UnavailableError, match="another shard"):
        await asking


async def test_a_drain_refuses_then_waits_then_evicts(halves: Halves) -> None:
    with halves.shard.call() as call:
        halves.shard.drain_soon(0.0)
        assert await halves.command() == messages.Drain(evict=False)
        assert await halves.command() == messages.Drain(evict=True)
        await halves.report(Drawn(call.number, 0, 7, None))
        await call.take()
    assert halves.shard.draining


async def test_load_and_speed_are_those_last_reported(halves: Halves) -> None:
    load = Load(64, 60, 2, 3, 4, 50, 9)
    with halves.shard.call() as call:
        await halves.report(Done(call.number), load=load, timing=Timing(1, 0, 0.01, 0.005, 0.0, 4, 4, 4))
        await call.take()
    assert halves.shard.state.load == load
    assert halves.shard.state.rates == Rates(step_ms=10.0, decoded=Decoded(1, 0.01, 4, 0))


def test_decode_steps_are_counted_with_their_sequences_and_what_these_saw_and_prompts_are_not() -> None:
    rates = Rates()
    for seconds, batch, seen in ((0.01, 2, 300), (0.03, 4, 900)):
        rates.note(Timing(1, 0, seconds, 0.0, 0.0, batch, batch, batch, seen))
    rates.note(Timing(2, 0, 0.5, 0.0, 0.0, 64, 2, 1, 64))
    assert rates.decoded == Decoded(2, 0.04, 6, 1200)
