"""Client of the work service: tasks of trees for workers outside, a language model's for instance."""

from __future__ import annotations

from typing import cast

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as memory_pb
from katsura.api.memory.v1 import work_service_pb2 as pb
from katsura.api.memory.v1.work_service_pb2_grpc import WorkServiceStub
from katsura.rpc.context import CallContext
from katsura.sdk.connection import Connection, new_request_id


class WorkClient:
    """Tasks of one tenant's trees. Errors: see the service's comments in `work_service.proto`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = WorkServiceStub(connection.channel)

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> WorkClient:
        """This client on behalf of `call` (our own processes only)."""
        return WorkClient(self._connection.acting_for(call, timeout_s))

    async def schedule(
        self,
        tree_id: str,
        kind: pb.WorkKind.ValueType = pb.WORK_KIND_COMPRESS,
        *,
        branch: str = "",
        summary_id: int = 0,
        reason: str = "",
    ) -> pb.WorkItem:
        """Ask for a summary of what is raw, or for a verdict about a summary."""
        request = pb.ScheduleWorkRequest(
            tree_id=tree_id, branch=branch, kind=kind, summary_id=summary_id, reason=reason
        )
        return cast(pb.ScheduleWorkResponse, await self._call("ScheduleWork", request)).item

    async def claim(
        self,
        worker_id: str,
        *,
        tree_id: str = "",
        kind: pb.WorkKind.ValueType = pb.WORK_KIND_UNSPECIFIED,
        most: int = 1,
        lease_s: int = 0,
    ) -> list[pb.ClaimedWork]:
        """Tasks that nobody holds. An answer that is lost costs the task one attempt: its lease ends by itself."""
        request = pb.ClaimWorkRequest(worker_id=worker_id, tree_id=tree_id, kind=kind, most=most, lease_s=lease_s)
        answer = await self._connection.unary(self._stub.ClaimWork, "memory.ClaimWork", request, attempts=1)
        return list(cast(pb.ClaimWorkResponse, answer).works)

    async def renew(self, item: pb.WorkItem, *, lease_s: int = 0) -> pb.WorkItem:
        """Hold a task longer; ABORTED / LEASE_LOST where it has been taken over."""
        request = pb.RenewWorkRequest(claim=_claim(item), lease_s=lease_s)
        return cast(pb.RenewWorkResponse, await self._call("RenewWork", request)).item

    async def summarise(
        self, item: pb.WorkItem, body: tree_pb.SummaryBody, *, request_id: str = ""
    ) -> pb.CompleteWorkResponse:
        """Hand in a summary; where its status is FAILED the task is still held, and `checks` say what to mend."""
        request = pb.CompleteWorkRequest(
            request_id=request_id or new_request_id(), claim=_claim(item), summary_body=body
        )
        return cast(pb.CompleteWorkResponse, await self._call("CompleteWork", request))

    async def judge(
        self, item: pb.WorkItem, verdict: memory_pb.ExternalVerdict, *, request_id: str = ""
    ) -> pb.CompleteWorkResponse:
        """Hand in a verdict."""
        request = pb.CompleteWorkRequest(request_id=request_id or new_request_id(), claim=_claim(item), verdict=verdict)
        return cast(pb.CompleteWorkResponse, await self._call("CompleteWork", request))

    async def give_back(self, item: pb.WorkItem, reason: str, *, retry_after_s: int = 0) -> pb.WorkItem:
        """End a claim without a result."""
        request = pb.GiveBackWorkRequest(claim=_claim(item), reason=reason, retry_after_s=retry_after_s)
        return cast(pb.GiveBackWorkResponse, await self._call("GiveBackWork", request)).item

    async def list(self, tree_id: str) -> list[pb.WorkItem]:
        """The tasks of a tree, those included that were given up."""
        return list(cast(pb.ListWorkResponse, await self._call("ListWork", pb.ListWorkRequest(tree_id=tree_id))).items)

    async def _call(self, name: str, request: object) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"memory.{name}", request)


def _claim(item: pb.WorkItem) -> pb.WorkClaim:
    return pb.WorkClaim(tree_id=item.tree_id, work_id=item.work_id, token=item.token, worker_id=item.worker_id)
