"""The work service on gRPC: messages in, messages out, everything else in `queue`."""

from __future__ import annotations

from typing import Any

import grpc

from katsura.api.memory.v1 import work_service_pb2 as pb
from katsura.api.memory.v1 import work_service_pb2_grpc
from katsura.domain.ids import TreeId
from katsura.domain.trees import SummaryBody
from katsura.domain.work import Fence, WorkItem, WorkKind
from katsura.memory import translate
from katsura.memory.core import limits
from katsura.memory.queue import Claimed, Queue
from katsura.memory.summaries import Outside
from katsura.rpc.context import current_tenant
from katsura.state.trees import TreeRef

Context = grpc.aio.ServicerContext[Any, Any]


class WorkServicer(work_service_pb2_grpc.WorkServiceServicer):
    """`katsura.api.memory.v1.WorkService`."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def ScheduleWork(  # noqa: N802
        self, request: pb.ScheduleWorkRequest, context: Context
    ) -> pb.ScheduleWorkResponse:
        """Ask for work."""
        ref = _ref(request.tree_id)
        kind = translate.enum_of(WorkKind, request.kind, "kind")
        item = await self._queue.schedule_work(ref, kind, request.branch, request.summary_id, request.reason)
        return pb.ScheduleWorkResponse(item=_item_message(ref, item))

    async def ClaimWork(self, request: pb.ClaimWorkRequest, context: Context) -> pb.ClaimWorkResponse:  # noqa: N802
        """Claim tasks."""
        works = await self._queue.claim_work(
            current_tenant().tenant_id,
            _ref(request.tree_id) if request.tree_id else None,
            translate.enum_of(WorkKind, request.kind, "kind"),
            request.worker_id,
            request.most,
            request.lease_s,
        )
        return pb.ClaimWorkResponse(works=map(_claimed_message, works))

    async def RenewWork(self, request: pb.RenewWorkRequest, context: Context) -> pb.RenewWorkResponse:  # noqa: N802
        """Hold a task longer."""
        ref = _ref(request.claim.tree_id)
        item = await self._queue.renew_work(ref, _fence(request.claim), request.lease_s)
        return pb.RenewWorkResponse(item=_item_message(ref, item))

    async def CompleteWork(  # noqa: N802
        self, request: pb.CompleteWorkRequest, context: Context
    ) -> pb.CompleteWorkResponse:
        """Hand in a result."""
        written = await self._queue.complete_work(
            _ref(request.claim.tree_id), request.request_id, _fence(request.claim), _result_from(request)
        )
        return pb.CompleteWorkResponse(
            summary=translate.node_message(written.node),
            checks=translate.check_messages(written.node.judgement),
            position=translate.position_message(written.position),
        )

    async def GiveBackWork(  # noqa: N802
        self, request: pb.GiveBackWorkRequest, context: Context
    ) -> pb.GiveBackWorkResponse:
        """End a claim."""
        ref = _ref(request.claim.tree_id)
        item = await self._queue.give_back_work(ref, _fence(request.claim), request.reason, request.retry_after_s)
        return pb.GiveBackWorkResponse(item=_item_message(ref, item))

    async def ListWork(self, request: pb.ListWorkRequest, context: Context) -> pb.ListWorkResponse:  # noqa: N802
        """List tasks."""
        ref = _ref(request.tree_id)
        return pb.ListWorkResponse(items=[_item_message(ref, item) for item in await self._queue.list_work(ref)])


def _ref(tree_id: str) -> TreeRef:
    return TreeRef(current_tenant().tenant_id, TreeId(tree_id))


def _fence(claim: pb.WorkClaim) -> Fence:
    return Fence(claim.work_id, claim.token, claim.worker_id)


def _result_from(request: pb.CompleteWorkRequest) -> SummaryBody | Outside:
    match request.WhichOneof("result"):
        case "summary_body":
            return translate.body_from(request.summary_body)
        case "verdict":
            return translate.outside_from(request.verdict)
    raise limits.refuse("result", "there is none; send summary_body or verdict, or give the task back")


def _item_message(ref: TreeRef, item: WorkItem) -> pb.WorkItem:
    return pb.WorkItem(
        tree_id=ref.tree,
        work_id=item.work_id,
        kind=pb.WorkKind.ValueType(item.kind),
        branch=item.branch,
        summary_id=item.summary,
        attempts=item.attempts,
        token=item.token,
        worker_id=item.worker,
        lease_end_time=translate.time_message(item.lease_end_ms) if item.worker else None,
        ready_time=translate.time_message(item.ready_ms),
        reason=item.reason,
        given_up=item.given_up,
    )


def _claimed_message(work: Claimed) -> pb.ClaimedWork:
    return pb.ClaimedWork(
        item=_item_message(work.ref, work.item),
        goal=work.tree.goal,
        pins=work.tree.pins,
        path_branch=work.branch,
        last_covered=work.last,
        covered_count=work.count,
        open_obligations=work.owed,
        summary=translate.node_message(work.summary) if work.summary else None,
    )
