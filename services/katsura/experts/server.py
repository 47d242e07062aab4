"""katsura.api.experts.v1 to the member and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from katsura.api.common.v1 import common_pb2 as common
from katsura.api.experts.v1 import experts_service_pb2 as pb
from katsura.api.experts.v1.experts_service_pb2_grpc import ExpertServiceServicer
from katsura.domain.leases import GroupRange
from katsura.domain.shape import Numerics
from katsura.experts.core.residency import ranges_of
from katsura.experts.service import MemberService
from katsura.rpc.context import require_internal

_NUMERICS = {
    Numerics.INVARIANT: common.NUMERICS_INVARIANT,
    Numerics.FAST: common.NUMERICS_FAST,
}
Context = grpc.aio.ServicerContext[Any, Any]


class ExpertServicer(ExpertServiceServicer):
    """Serves one member to our own processes."""

    def __init__(self, member: MemberService) -> None:
        self._member = member

    async def GetMember(self, request: pb.GetMemberRequest, context: Context) -> pb.GetMemberResponse:  # noqa: N802
        """What this member is, holds and costs."""
        require_internal()
        return pb.GetMemberResponse(member=self._as_proto())

    async def Load(self, request: pb.LoadRequest, context: Context) -> pb.LoadResponse:  # noqa: N802
        """Loads groups ahead of the table that will name them."""
        require_internal()
        await self._member.load(_ranges(request.groups))
        return pb.LoadResponse(member=self._as_proto())

    async def Unload(self, request: pb.UnloadRequest, context: Context) -> pb.UnloadResponse:  # noqa: N802
        """Frees groups that no committed table names."""
        require_internal()
        await self._member.unload(_ranges(request.groups))
        return pb.UnloadResponse(member=self._as_proto())

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:  # noqa: N802
        """Runs canary inputs through loaded groups."""
        require_internal()
        digests = await self._member.probe(_ranges(request.groups))
        return pb.ProbeResponse(
            digests=[pb.GroupDigest(layer=d.layer, group=d.group, digest=d.digest) for d in digests]
        )

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        """Refuses new frames; what was accepted is answered."""
        require_internal()
        await self._member.drain(request.timeout_ms / 1000)
        return pb.DrainResponse(drain=self._drain_state())

    def _as_proto(self) -> pb.Member:
        member, hello, config = self._member, self._member.hello, self._member.config
        return pb.Member(
            member_id=member.member_id,
            incarnation=member.incarnation,
            revision=common.Revision(
                deployment=config.deployment,
                revision_id=member.revision_id,
                weights_digest=hello.weights_digest,
                numerics=_NUMERICS[config.numerics],
                dtype=config.dtype.value,
            ),
            loaded=[
                pb.GroupRange(layer_start=r.layer_start, layer_end=r.layer_end, groups=r.groups)
                for r in ranges_of(member.loaded)
            ],
            capacity_bytes=hello.capacity_bytes,
            loaded_bytes=member.loaded_bytes,
            unit_cost_s=hello.unit_cost_s,
            token_cost_s=hello.token_cost_s,
            epoch=member.serving_epoch,
            data_endpoints=hello.data_endpoints,
            fingerprint=bytes.fromhex(hello.fingerprint),
            drain=self._drain_state(),
        )

    def _drain_state(self) -> common.DrainState:
        return common.DrainState(draining=self._member.draining, active_count=self._member.clients)


def _ranges(groups: Iterable[pb.GroupRange]) -> tuple[GroupRange, ...]:
    return tuple(GroupRange(each.layer_start, each.layer_end, tuple(each.groups)) for each in groups)
