"""Clients of attention shards, by address: the router says which one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import cast

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.attention.v1.attention_service_pb2_grpc import AttentionServiceStub
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.connection import Connection, new_request_id


class AttentionClient:
    """Operations of one shard."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = AttentionServiceStub(connection.channel)

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> AttentionClient:
        """This client on behalf of `call` (our own processes only)."""
        return AttentionClient(self._connection.acting_for(call, timeout_s))

    def generate(self, request: pb.GenerateRequest, *, timeout_s: float) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Stream tokens as they are drawn; leaving the iterator cancels the generation."""
        return self._connection.stream(self._stub.Generate, request, timeout_s)

    async def create_sequence(
        self,
        token_ids: Sequence[int],
        *,
        revision_id: str,
        program: pb.ProgramRef | None = None,
        keep_ms: int = 0,
        request_id: str = "",
    ) -> pb.Sequence:
        """Open a sequence and prefill it."""
        request = pb.CreateSequenceRequest(
            request_id=request_id or new_request_id(),
            revision_id=revision_id,
            program=program,
            token_ids=token_ids,
            keep_ms=keep_ms,
        )
        return cast(pb.CreateSequenceResponse, await self._call("CreateSequence", request)).sequence

    async def fork_sequence(
        self, sequence_id: str, *, token_count: int = 0, child_count: int = 1, request_id: str = ""
    ) -> list[pb.Sequence]:
        """Children that share every page up to `token_count` (0: all)."""
        request = pb.ForkSequenceRequest(
            request_id=request_id or new_request_id(),
            sequence_id=sequence_id,
            token_count=token_count,
            child_count=child_count,
        )
        return list(cast(pb.ForkSequenceResponse, await self._call("ForkSequence", request)).sequences)

    async def truncate_sequence(self, sequence_id: str, token_count: int) -> pb.Sequence:
        """Cut a sequence back to `token_count` tokens."""
        request = pb.TruncateSequenceRequest(sequence_id=sequence_id, token_count=token_count)
        return cast(pb.TruncateSequenceResponse, await self._call("TruncateSequence", request)).sequence

    async def delete_sequence(self, sequence_id: str) -> None:
        """Let go of a sequence; an unknown one is no error."""
        await self._call("DeleteSequence", pb.DeleteSequenceRequest(sequence_id=sequence_id))

    async def get_shard(self) -> pb.Shard:
        """The shard as it sees itself."""
        return cast(pb.GetShardResponse, await self._call("GetShard", pb.GetShardRequest())).shard

    async def drop_pages(self, page_hashes: Sequence[bytes] = (), *, all_pages: bool = False) -> int:
        """Drop cached pages of the calling tenant; returns how many went."""
        request = pb.DropPagesRequest(page_hashes=page_hashes, all_pages=all_pages)
        return cast(pb.DropPagesResponse, await self._call("DropPages", request)).dropped_count

    async def probe(self, token_count: int = 1) -> pb.ProbeResponse:
        """Draw tokens for a fixed prompt through the whole path."""
        return cast(pb.ProbeResponse, await self._call("Probe", pb.ProbeRequest(token_count=token_count)))

    async def drain(self, timeout_ms: int) -> pb.DrainResponse:
        """Refuse new sequences; what is left after the timeout ends EVICTED."""
        return cast(pb.DrainResponse, await self._call("Drain", pb.DrainRequest(timeout_ms=timeout_ms)))

    async def _call(self, name: str, request: object) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"attention.{name}", request)


class ShardPool:
    """Connections to shards, opened on first use and kept by address."""

    def __init__(self, *, internal_token: str = "", tls: TlsFiles | None = None) -> None:
        self._internal_token = internal_token
        self._tls = tls
        self._clients: dict[str, tuple[Connection, AttentionClient]] = {}

    def at(self, address: str) -> AttentionClient:
        """The client of the shard at `address`."""
        if address not in self._clients:
            connection = Connection(open_channel(address, self._tls), self._internal_token)
            self._clients[address] = (connection, AttentionClient(connection))
        return self._clients[address][1]

    async def forget(self, address: str) -> None:
        """Close the connection to a shard that is gone."""
        found = self._clients.pop(address, None)
        if found is not None:
            await found[0].close()

    async def close(self) -> None:
        """Close them all."""
        for address in list(self._clients):
            await self.forget(address)
