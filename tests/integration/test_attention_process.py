"""A whole shard, both processes and gRPC, with its experts inside (topology Unified)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.common.v1 import common_pb2
from katsura.domain.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from katsura.testing.process import ServedProcess
from katsura.testing.shards import STRANGER, ShardClient, Stream, client_of, shard_process
from katsura.testing.tiny import TinyModel, save_tiny

PROMPT = [1, 5, 9, 33, 77, 20, 4, 8, 99, 100, 101, 102, 5, 6, 7, 8, 9, 3]
PAGES = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=2048)


@pytest.fixture
def run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ks-") as name:  # short: a socket's path has 107 bytes at most
        yield Path(name)


@pytest.fixture
async def engine(model: TinyModel, run_folder: Path) -> AsyncIterator[ServedProcess]:
    page_bytes = 2 * 3 * 2 * 8 * 8 * 4
    variables = {"PAGE_TOKENS": 8, "KV_BYTES": PAGES * page_bytes}
    async with shard_process("katsura.engine", model.folder, run_folder, **variables) as process:
        yield process


@pytest.fixture
async def shard(engine: ServedProcess) -> AsyncIterator[ShardClient]:
    async with client_of(engine.address) as client:
        yield client


def compute_half_of(engine: ServedProcess) -> int:
    (child,) = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
    return int(child)


async def test_a_stream_carries_the_tokens_the_usage_and_the_end(model: TinyModel, shard: ShardClient) -> None:
    stream = await shard.generate(PROMPT, 12)
    assert stream.tokens == {0: model.greedy(PROMPT, 12)}
    assert stream.finish == {0: common_pb2.FINISH_REASON_LENGTH}
    assert stream.first is not None
    assert stream.last is not None
    assert (stream.first.usage.prompt_tokens, stream.first.usage.cached_tokens) == (18, 0)
    assert stream.first.first_token_ms > 0
    assert stream.last.usage.completion_tokens == 12
    again = await shard.generate(PROMPT, 12, choice_count=2)
    assert again.tokens == {0: stream.tokens[0], 1: stream.tokens[0]}
    assert again.first is not None
    assert again.first.usage.cached_tokens == 16


async def test_many_calls_at_once_each_get_their_own_answer(model: TinyModel, shard: ShardClient) -> None:
    prompts = [[1, *(3 + (7 * i + 11 * n) % 190 for i in range(5 + n))] for n in range(12)]
    streams = await asyncio.gather(*(shard.generate(prompt, 10) for prompt in prompts))
    assert [stream.tokens[0] for stream in streams] == [model.greedy(prompt, 10) for prompt in prompts]


async def test_sequences_open_fork_cut_and_close(model: TinyModel, shard: ShardClient) -> None:
    client = shard.client
    opened = await client.create_sequence(PROMPT, revision_id=shard.revision_id, request_id="r1")
    assert (opened.token_count, opened.computed_tokens) == (18, 18)
    repeated = await client.create_sequence(PROMPT, revision_id=shard.revision_id, request_id="r1")
    assert repeated.sequence_id == opened.sequence_id
    left, right = await client.fork_sequence(opened.sequence_id, token_count=10, child_count=2)
    streams = await asyncio.gather(
        *(shard.generate([7], 6, sequence_id=name) for name in (left.sequence_id, right.sequence_id))
    )
    assert [stream.tokens[0] for stream in streams] == [model.greedy([*PROMPT[:10], 7], 6)] * 2
    cut = await client.truncate_sequence(left.sequence_id, 4)
    assert cut.token_count == 4
    for name in (opened.sequence_id, left.sequence_id, right.sequence_id, "unknown"):
        await client.delete_sequence(name)
    with pytest.raises(NotFoundError) as caught:
        await client.truncate_sequence(left.sequence_id, 2)
    assert caught.value.reason is Reason.SEQUENCE_NOT_FOUND
    await shard.until_free(PAGES)


async def test_another_tenants_sequences_and_pages_are_unknown(engine: ServedProcess, shard: ShardClient) -> None:
    mine = await shard.client.create_sequence(PROMPT, revision_id=shard.revision_id)
    async with client_of(engine.address, STRANGER) as stranger:
        with pytest.raises(NotFoundError):
            await stranger.client.fork_sequence(mine.sequence_id)
        theirs = await stranger.client.create_sequence(PROMPT, revision_id=shard.revision_id)
        assert theirs.cached_tokens == 0
        assert await stranger.client.drop_pages(all_pages=True) == 2
    assert (await shard.client.create_sequence(PROMPT, revision_id=shard.revision_id)).cached_tokens == 16


async def test_bad_requests_name_their_field(shard: ShardClient) -> None:
    async def refused(request: pb.GenerateRequest) -> InvalidArgumentError | OutOfRangeError:
        with pytest.raises((InvalidArgumentError, OutOfRangeError)) as caught:
            async for _ in shard.client.generate(request, timeout_s=60):
                pass
        return caught.value

    assert (await refused(shard.request([1] * 3000, 4))).reason is Reason.CONTEXT_TOO_LONG
    assert (await refused(shard.request([1, 999], 4))).field == "token_ids"
    assert (await refused(shard.request([], 4))).field == "token_ids"
    assert (await refused(shard.request([1], 0))).field == "stop.max_new_tokens"
    assert (await refused(shard.request([1], 1, choice_count=-1))).field == "choice_count"
    assert (await refused(shard.request([1], 1, sampling=common_pb2.SamplingParams(top_p=7)))).field == "top_p"
    other = shard.request([1], 1)
    other.revision_id = "another"
    assert (await refused(other)).field == "revision_id"


async def test_a_client_that_goes_away_frees_its_pages(shard: ShardClient) -> None:
    stream = Stream()
    task = asyncio.create_task(shard.generate(PROMPT, 1500, stream=stream))
    await asyncio.wait_for(stream.begun.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shard.until_free(PAGES)


async def test_a_deadline_ends_the_stream_and_the_work(shard: ShardClient) -> None:
    with pytest.raises(DeadlineExceededError):
        await shard.generate(PROMPT, 1900, timeout_s=0.4)
    await shard.until_free(PAGES)


async def test_a_probe_draws_and_only_our_own_processes_may_ask(engine: ServedProcess, shard: ShardClient) -> None:
    probed = await shard.client.probe(3)
    assert len(probed.token_ids) == 3
    assert probed.shard.page_count == PAGES
    from katsura.rpc.channel import open_channel
    from katsura.sdk.attention import AttentionClient
    from katsura.sdk.connection import Connection

    connection = Connection(open_channel(engine.address))
    with pytest.raises(PermissionDeniedError):
        await AttentionClient(connection).probe()
    await connection.close()


async def test_a_draining_shard_evicts_what_is_left_so_that_it_goes_on_elsewhere(
    model: TinyModel, shard: ShardClient
) -> None:
    stream = Stream()
    task = asyncio.create_task(shard.generate(PROMPT, 1900, stream=stream))
    await asyncio.wait_for(stream.begun.wait(), 60)
    drain = await shard.client.drain(50)
    assert (drain.drain.draining, drain.drain.active_count) == (True, 1)
    with pytest.raises(UnavailableError) as caught:
        await shard.client.acting_for(shard.client._connection.call, timeout_s=60).create_sequence(  # type: ignore[arg-type]
            [1], revision_id=shard.revision_id
        )
    assert caught.value.reason is Reason.DRAINING
    await task
    assert stream.finish == {0: common_pb2.FINISH_REASON_EVICTED}
    drawn = stream.tokens[0]
    assert drawn[:16] == model.greedy(PROMPT, min(16, len(drawn)))


async def test_sigterm_drains_and_ends_both_halves(engine: ServedProcess) -> None:
    child = compute_half_of(engine)
    assert await engine.terminate() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_the_death_of_the_compute_half_fails_calls_and_ends_the_other(
    engine: ServedProcess, shard: ShardClient
) -> None:
    stream, process = Stream(), engine._process
    task = asyncio.create_task(shard.generate(PROMPT, 1900, stream=stream))
    await asyncio.wait_for(stream.begun.wait(), 60)
    os.kill(compute_half_of(engine), signal.SIGKILL)
    with pytest.raises(UnavailableError):
        await task
    assert process is not None
    assert await asyncio.wait_for(process.wait(), 60) == 1


async def test_the_death_of_the_rpc_half_ends_the_other(engine: ServedProcess) -> None:
    child = compute_half_of(engine)
    descriptor = os.pidfd_open(child)
    await engine.kill()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    await asyncio.wait_for(ended.wait(), 60)
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_a_model_that_is_not_there_is_said_in_one_line(run_folder: Path) -> None:
    process = shard_process("katsura.engine", run_folder / "nothing", run_folder)
    with pytest.raises(RuntimeError, match="is not a model folder"):
        await process.start()
    lines = (run_folder / "katsura.engine.log").read_text().splitlines()
    assert not [line for line in lines if "Traceback" in line], json.dumps(lines)
