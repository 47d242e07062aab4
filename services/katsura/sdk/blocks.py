"""Client of the block service: named values of an agent, a user or the tenant, with history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from katsura.api.memory.v1 import block_service_pb2 as pb
from katsura.api.memory.v1.block_service_pb2_grpc import BlockServiceStub
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection, new_request_id

TENANT = pb.BlockOwner(scope=pb.BLOCK_SCOPE_TENANT)
"""Blocks of everybody in the tenant."""


def of_agent(agent_id: str) -> pb.BlockOwner:
    """Blocks of one agent."""
    return pb.BlockOwner(scope=pb.BLOCK_SCOPE_AGENT, owner=agent_id)


def of_user(user_id: str) -> pb.BlockOwner:
    """Blocks of one user."""
    return pb.BlockOwner(scope=pb.BLOCK_SCOPE_USER, owner=user_id)


class BlockClient:
    """Operations on the blocks of one tenant. Errors: see the service's comments in `block_service.proto`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = BlockServiceStub(connection.channel)

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> BlockClient:
        """This client on behalf of `call` (our own processes only)."""
        return BlockClient(self._connection.acting_for(call, timeout_s))

    async def put(
        self,
        owner: pb.BlockOwner,
        name: str,
        value: bytes,
        *,
        media_type: str = "",
        attributes: Mapping[str, str] | None = None,
        expected_version: int | None = None,
        ttl_s: int = 0,
        request_id: str = "",
    ) -> pb.Block:
        """Write a value; `expected_version` (0: there is none) makes it a compare-and-set, ABORTED where it lost."""
        request = pb.PutBlockRequest(
            request_id=request_id or new_request_id(),
            owner=owner,
            name=name,
            value=value,
            media_type=media_type,
            attributes=dict(attributes or {}),
            expected_version=expected_version,
            ttl_s=ttl_s,
        )
        return cast(pb.PutBlockResponse, await self._call("PutBlock", request)).block

    async def get(self, owner: pb.BlockOwner, name: str) -> pb.Block:
        """The newest version; NOT_FOUND where there is none."""
        request = pb.GetBlockRequest(owner=owner, name=name)
        return cast(pb.GetBlockResponse, await self._call("GetBlock", request)).block

    async def delete(
        self,
        owner: pb.BlockOwner,
        name: str,
        *,
        expected_version: int | None = None,
        forget: bool = False,
        request_id: str = "",
    ) -> bool:
        """Take a value away, its history too with `forget`; whether there was one."""
        request = pb.DeleteBlockRequest(
            request_id=request_id or new_request_id(),
            owner=owner,
            name=name,
            expected_version=expected_version,
            forget=forget,
        )
        return cast(pb.DeleteBlockResponse, await self._call("DeleteBlock", request)).deleted

    async def list_page(
        self,
        owner: pb.BlockOwner,
        *,
        prefix: str = "",
        attributes: Mapping[str, str] | None = None,
        query: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> pb.ListBlocksResponse:
        """A page of blocks by name; go on with `next_page_token` until it is empty."""
        request = pb.ListBlocksRequest(
            owner=owner,
            prefix=prefix,
            attributes=dict(attributes or {}),
            query=query,
            page_size=page_size,
            page_token=page_token,
        )
        return cast(pb.ListBlocksResponse, await self._call("ListBlocks", request))

    async def history(self, owner: pb.BlockOwner, name: str) -> list[pb.Block]:
        """The versions that are kept, newest first."""
        request = pb.GetBlockHistoryRequest(owner=owner, name=name)
        return list(cast(pb.GetBlockHistoryResponse, await self._call("GetBlockHistory", request)).versions)

    async def _call(self, name: str, request: object) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"blocks.{name}", request)
