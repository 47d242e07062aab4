"""The block service on gRPC: messages in, messages out, everything else in `blocks`."""

from __future__ import annotations

from typing import Any

import grpc

from katsura.api.memory.v1 import block_service_pb2 as pb
from katsura.api.memory.v1 import block_service_pb2_grpc
from katsura.domain.blocks import Block, BlockOwner, BlockScope, Content
from katsura.memory.blocks import Blocks
from katsura.memory.translate import enum_of, time_message
from katsura.rpc.context import current_tenant

Context = grpc.aio.ServicerContext[Any, Any]


class BlockServicer(block_service_pb2_grpc.BlockServiceServicer):
    """`katsura.api.memory.v1.BlockService`."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    async def PutBlock(self, request: pb.PutBlockRequest, context: Context) -> pb.PutBlockResponse:  # noqa: N802
        """Write a value."""
        block = await self._blocks.put(
            _owner(request.owner),
            request.request_id,
            request.name,
            Content(request.value, request.media_type, dict(request.attributes)),
            request.expected_version if request.HasField("expected_version") else None,
            request.ttl_s,
        )
        return pb.PutBlockResponse(block=block_message(block))

    async def GetBlock(self, request: pb.GetBlockRequest, context: Context) -> pb.GetBlockResponse:  # noqa: N802
        """Read a value."""
        return pb.GetBlockResponse(block=block_message(await self._blocks.get(_owner(request.owner), request.name)))

    async def DeleteBlock(  # noqa: N802
        self, request: pb.DeleteBlockRequest, context: Context
    ) -> pb.DeleteBlockResponse:
        """Take a value away."""
        expected = request.expected_version if request.HasField("expected_version") else None
        deleted = await self._blocks.delete(
            _owner(request.owner), request.request_id, request.name, expected, request.forget
        )
        return pb.DeleteBlockResponse(deleted=deleted)

    async def ListBlocks(self, request: pb.ListBlocksRequest, context: Context) -> pb.ListBlocksResponse:  # noqa: N802
        """List values by name."""
        page = await self._blocks.page(
            _owner(request.owner),
            request.prefix,
            dict(request.attributes),
            request.query,
            request.page_size,
            request.page_token,
        )
        return pb.ListBlocksResponse(blocks=map(block_message, page.blocks), next_page_token=page.next_after)

    async def GetBlockHistory(  # noqa: N802
        self, request: pb.GetBlockHistoryRequest, context: Context
    ) -> pb.GetBlockHistoryResponse:
        """Read the versions of a value."""
        versions = await self._blocks.history(_owner(request.owner), request.name)
        return pb.GetBlockHistoryResponse(versions=map(block_message, versions))


def block_message(block: Block) -> pb.Block:
    """One version of a value."""
    return pb.Block(
        name=block.name,
        value=block.content.value,
        media_type=block.content.media_type,
        attributes=dict(block.content.attributes),
        version=block.version,
        create_time=time_message(block.create_ms),
        update_time=time_message(block.update_ms),
        deleted=block.deleted,
    )


def _owner(message: pb.BlockOwner) -> BlockOwner:
    return BlockOwner(current_tenant().tenant_id, enum_of(BlockScope, message.scope, "owner.scope"), message.owner)
