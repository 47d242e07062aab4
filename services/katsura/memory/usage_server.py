"""The usage service on gRPC: messages in, messages out, everything else in `quotas` and the stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from katsura.api.memory.v1 import usage_service_pb2 as pb
from katsura.api.memory.v1 import usage_service_pb2_grpc
from katsura.domain.ids import TreeId
from katsura.domain.usage import Charge, Quotas, Usage
from katsura.memory.quotas import Meter
from katsura.rpc.context import current_tenant
from katsura.state.trees import TreeRef, TreeStore

Context = grpc.aio.ServicerContext[Any, Any]


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """`katsura.api.memory.v1.UsageService`."""

    def __init__(self, meter: Meter, trees: TreeStore) -> None:
        self._meter = meter
        self._trees = trees

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:  # noqa: N802
        """Read the sums over all trees."""
        settled, quotas, counted = await self._meter.usage(current_tenant().tenant_id, request.recount)
        return pb.GetUsageResponse(
            usage=_usage_message(settled.usage),
            quotas=_quotas_message(quotas),
            requests_this_minute=settled.requests,
            agents=_agent_messages(counted.agents if counted else {}),
        )

    async def GetTreeUsage(  # noqa: N802
        self, request: pb.GetTreeUsageRequest, context: Context
    ) -> pb.GetTreeUsageResponse:
        """Read what one tree takes."""
        counted = await self._trees.counted(TreeRef(current_tenant().tenant_id, TreeId(request.tree_id)))
        return pb.GetTreeUsageResponse(usage=_usage_message(counted.usage), agents=_agent_messages(counted.agents))


def _usage_message(usage: Usage) -> pb.Usage:
    return pb.Usage(trees=usage.trees, nodes=usage.nodes, stored_bytes=usage.bytes, blocks=usage.blocks)


def _quotas_message(quotas: Quotas) -> pb.Quotas:
    return pb.Quotas(
        trees=quotas.trees,
        nodes=quotas.nodes,
        stored_bytes=quotas.bytes,
        requests_per_minute=quotas.requests_per_minute,
    )


def _agent_messages(agents: Mapping[str, Charge]) -> list[pb.AgentUsage]:
    return [
        pb.AgentUsage(
            agent_id=agent,
            steps=charge.steps,
            stored_bytes=charge.bytes,
            prompt_tokens=charge.prompt_tokens,
            cached_tokens=charge.cached_tokens,
            completion_tokens=charge.completion_tokens,
            micros=charge.micros,
        )
        for agent, charge in sorted(agents.items())
    ]
