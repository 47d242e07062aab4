"""Client of one expert member's control service. Activations travel on the data plane, never here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from katsura.api.experts.v1 import experts_service_pb2 as pb
from katsura.api.experts.v1.experts_service_pb2_grpc import ExpertServiceStub
from katsura.sdk.connection import Connection


class ExpertClient:
    """Operations of one member."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = ExpertServiceStub(connection.channel)

    async def get_member(self) -> pb.Member:
        """The member as it sees itself."""
        return cast(pb.GetMemberResponse, await self._call("GetMember", pb.GetMemberRequest())).member

    async def load(self, groups: Sequence[pb.GroupRange], *, timeout_s: float | None = None) -> pb.Member:
        """Load reduction groups; answers when they are ready."""
        request = pb.LoadRequest(groups=groups)
        return cast(pb.LoadResponse, await self._call("Load", request, timeout_s)).member

    async def unload(self, groups: Sequence[pb.GroupRange]) -> pb.Member:
        """Free reduction groups that no committed table names."""
        return cast(pb.UnloadResponse, await self._call("Unload", pb.UnloadRequest(groups=groups))).member

    async def probe(self, groups: Sequence[pb.GroupRange] = ()) -> list[pb.GroupDigest]:
        """Digests of canary outputs, by ascending (layer, group)."""
        return list(cast(pb.ProbeResponse, await self._call("Probe", pb.ProbeRequest(groups=groups))).digests)

    async def drain(self, timeout_ms: int) -> pb.DrainResponse:
        """Refuse new frames; what was accepted is answered."""
        return cast(pb.DrainResponse, await self._call("Drain", pb.DrainRequest(timeout_ms=timeout_ms)))

    async def _call(self, name: str, request: object, timeout_s: float | None = None) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"experts.{name}", request, timeout_s)
