"""Client of the usage service: what a tenant's trees take, what they may take, and what each agent cost."""

from __future__ import annotations

from typing import cast

from katsura.api.memory.v1 import usage_service_pb2 as pb
from katsura.api.memory.v1.usage_service_pb2_grpc import UsageServiceStub
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection


class UsageClient:
    """Usage of one tenant. Errors: see the service's comments in `usage_service.proto`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = UsageServiceStub(connection.channel)

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> UsageClient:
        """This client on behalf of `call` (our own processes only)."""
        return UsageClient(self._connection.acting_for(call, timeout_s))

    async def usage(self, *, recount: bool = False) -> pb.GetUsageResponse:
        """The sums over all trees, and the quotas; with `recount` exact, and by agent."""
        request = pb.GetUsageRequest(recount=recount)
        return cast(pb.GetUsageResponse, await self._call("GetUsage", request))

    async def of_tree(self, tree_id: str) -> pb.GetTreeUsageResponse:
        """What one tree takes, and by agent."""
        request = pb.GetTreeUsageRequest(tree_id=tree_id)
        return cast(pb.GetTreeUsageResponse, await self._call("GetTreeUsage", request))

    async def _call(self, name: str, request: object) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"memory.{name}", request)
