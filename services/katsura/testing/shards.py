"""Clients and prompts for tests that speak to a real attention shard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.common.v1 import common_pb2
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.sdk.attention import AttentionClient
from katsura.sdk.connection import Connection
from katsura.testing.compute import environment
from katsura.testing.process import ServedProcess

TENANT = Tenant(TenantId("tenant"), bytes(range(32)))
STRANGER = Tenant(TenantId("stranger"), bytes(range(32, 64)))
TOKEN = "t"


@dataclass
class Stream:
    """What one generation has said so far, by choice."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    finish: dict[int, int] = field(default_factory=dict)
    first: pb.GenerateResponse | None = None
    last: pb.GenerateResponse | None = None
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the first token is there."""

    def note(self, response: pb.GenerateResponse) -> None:
        """Take over one response."""
        self.first, self.last = self.first or response, response
        if response.tokens:
            self.begun.set()
        self.tokens.setdefault(response.choice_index, []).extend(token.token_id for token in response.tokens)
        if response.finish_reason:
            self.finish[response.choice_index] = response.finish_reason


@dataclass(frozen=True)
class ShardClient:
    """One shard, one tenant."""

    client: AttentionClient
    revision_id: str

    def request(self, prompt: Sequence[int], count: int, **more: object) -> pb.GenerateRequest:
        """A greedy generation; `more` are further fields."""
        fields: dict[str, object] = {"sampling": common_pb2.SamplingParams(top_logprobs=-1)} | more
        stop = common_pb2.StopConditions(max_new_tokens=count)
        return pb.GenerateRequest(revision_id=self.revision_id, token_ids=prompt, stop=stop, **fields)  # type: ignore[arg-type]

    async def generate(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        stream: Stream | None = None,
        timeout_s: float = 60.0,
        **more: object,
    ) -> Stream:
        """Run a generation to its end; `stream` may be watched meanwhile."""
        stream = stream or Stream()
        async for response in self.client.generate(self.request(prompt, count, **more), timeout_s=timeout_s):
            stream.note(response)
        return stream

    async def until_free(self, pages: int, limit_s: float = 30.0) -> None:
        """Ask the shard until it has so many free pages."""
        async with asyncio.timeout(limit_s):
            while (await self.client.get_shard()).free_page_count != pages:
                continue


@asynccontextmanager
async def client_of(address: str, tenant: Tenant = TENANT) -> AsyncIterator[ShardClient]:
    """A client of the shard at `address`."""
    connection = Connection(open_channel(address), TOKEN)
    client = AttentionClient(connection).acting_for(CallContext(tenant, internal=True))
    try:
        yield ShardClient(client, (await client.get_shard()).revision.revision_id)
    finally:
        await connection.close()


def shard_process(module: str, folder: Path, run_folder: Path, **variables: object) -> ServedProcess:
    """A shard that listens in `run_folder`; enter it to start it."""
    listen = f"unix:{run_folder}/{module.rpartition('.')[2]}"
    variables = {"LISTEN": listen, "INTERNAL_TOKEN": TOKEN, "SOCKET_DIR": run_folder} | variables
    return ServedProcess(module, environment(folder, **variables), run_folder / f"{module}.log")
