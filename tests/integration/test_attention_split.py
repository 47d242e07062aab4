"""A shard, its members, a router that writes their table, and a store: all real, over every transport."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from katsura.testing.process import ServedProcess
from katsura.testing.shards import ShardClient, Stream, client_of, shard_process
from katsura.testing.store import EmbeddedStore
from katsura.testing.tiny import TinyModel, save_tiny

PROMPT = [1, 5, 9, 33, 77, 20, 4, 8, 99, 100, 101, 102, 5, 6, 7, 8, 9, 3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    root = tmp_path_factory.mktemp("tiny")
    return {family: save_tiny(root / family, family) for family in ("llama", "mixtral")}


@dataclass
class Split:
    shard: ShardClient
    members: list[ServedProcess]


@pytest.fixture
def run_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ks-") as name:
        yield Path(name)


@asynccontextmanager
async def split(model: TinyModel, run_folder: Path, member_count: int, transport: str) -> AsyncIterator[Split]:
    """Everything of one split deployment, up and covered."""
    async with AsyncExitStack() as stack:
        store = EmbeddedStore()
        stack.callback(store.close)
        await asyncio.to_thread(store.start)
        common = {"INTERNAL_TOKEN": "t", "STORE_URL": store.url}
        deployment = {"DEPLOYMENT": "tiny", "MODEL_PATH": model.folder, "FFN_SLICES": 8, "FFN_GROUPS": 4}
        only = {"SOCKET_DIR": ""} if transport == "tcp" else {"DATA_LISTEN": "none", "SOCKET_DIR": run_folder}
        started = [
            await stack.enter_async_context(_process(module, name, run_folder, common | more))
            for module, name, more in (
                *(("katsura.experts", f"m{number}", deployment | only) for number in range(member_count)),
                ("katsura.router", "router", {}),
            )
        ]
        variables = {"STORE_URL": store.url, "PAGE_TOKENS": 8, "FFN_SLICES": 8, "FFN_GROUPS": 4}
        shard = shard_process("katsura.attention", model.folder, run_folder, **variables)
        await stack.enter_async_context(shard)
        yield Split(await stack.enter_async_context(client_of(shard.address)), started[:-1])


def _process(module: str, name: str, run_folder: Path, variables: dict[str, object]) -> ServedProcess:
    variables = variables | {"LISTEN": f"unix:{run_folder}/{name}", "INSTANCE_ID": name}
    told = {f"KATSURA_{key}": str(value) for key, value in variables.items() if value != ""}
    return ServedProcess(module, told, run_folder / f"{name}.log")


@pytest.mark.parametrize(
    ("family", "member_count", "transport"), [("llama", 2, "shm"), ("mixtral", 2, "tcp"), ("llama", 4, "tcp")]
)
async def test_the_split_answers_like_transformers(
    models: dict[str, TinyModel], run_folder: Path, family: str, member_count: int, transport: str
) -> None:
    model = models[family]
    async with split(model, run_folder, member_count, transport) as deployment:
        stream = await deployment.shard.generate(PROMPT, 16)
        assert stream.tokens == {0: model.greedy(PROMPT, 16)}
        described = await deployment.shard.client.get_shard()
        assert described.epoch > 0
        assert {how.partition(" ")[0] for how in described.transports.values()} == {transport}
        counted = described.decoded  # the first token is the prompt's
        assert (counted.steps, counted.sequences) == (15, 15)
        assert counted.context_tokens == sum(len(PROMPT) + i for i in range(1, 16))
        assert counted.seconds > 0


async def test_a_member_that_dies_costs_no_token_while_another_has_a_copy(
    models: dict[str, TinyModel], run_folder: Path
) -> None:
    model = models["mixtral"]
    async with split(model, run_folder, 2, "shm") as deployment:
        other = [1, *range(20, 50)]
        expected = [model.greedy(PROMPT, 60), model.greedy(other, 60)]
        streams = [Stream(), Stream()]
        tasks = [
            asyncio.create_task(deployment.shard.generate(prompt, 60, stream=stream))
            for prompt, stream in zip((PROMPT, other), streams, strict=True)
        ]
        await asyncio.wait_for(streams[0].begun.wait(), 60)
        await deployment.members[0].kill()
        await asyncio.gather(*tasks)
        assert [stream.tokens[0] for stream in streams] == expected


async def test_generation_pauses_until_the_last_copy_is_back(models: dict[str, TinyModel], run_folder: Path) -> None:
    model = models["llama"]
    async with split(model, run_folder, 1, "shm") as deployment:
        stream, member = Stream(), deployment.members[0]
        task = asyncio.create_task(deployment.shard.generate(PROMPT, 300, stream=stream, timeout_s=120))
        await asyncio.wait_for(stream.begun.wait(), 60)
        await member.kill()
        drawn = len(stream.tokens[0])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 0.5)
        assert not task.done(), f"it went on after {drawn} tokens without a member"
        await member.start()
        await task
        assert stream.tokens[0][:64] == model.greedy(PROMPT, 64)
        assert len(stream.tokens[0]) == 300
