"""The part of the memory service on gRPC about how steps hang together, what waits, what goes and who may write."""

from __future__ import annotations

from typing import Any

import grpc

from katsura.api.memory.v1 import memory_branches_pb2 as branches_pb
from katsura.api.memory.v1 import memory_collect_pb2 as collect_pb
from katsura.api.memory.v1 import memory_leases_pb2 as leases_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_references_pb2 as references_pb
from katsura.api.memory.v1 import memory_service_pb2_grpc
from katsura.api.memory.v1 import memory_subgoals_pb2 as subgoals_pb
from katsura.api.memory.v1 import memory_waits_pb2 as waits_pb
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import TreeId
from katsura.domain.trees import BranchState, Resolution, Verdict
from katsura.domain.work import WorkItem
from katsura.memory import translate
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.memory.subgoals import Closing
from katsura.rpc.context import current_tenant
from katsura.rpc.interceptor import Admission
from katsura.state.branches import BranchChange
from katsura.state.trees import TreeRef, Written

Context = grpc.aio.ServicerContext[Any, Any]


class StructureServicer(memory_service_pb2_grpc.MemoryServiceServicer):
    """References and waiting of `katsura.api.memory.v1.MemoryService`."""

    def __init__(self, memory: Memory, admission: Admission | None = None) -> None:
        self._memory = memory
        self._admission = admission

    async def AddReferences(  # noqa: N802
        self, request: references_pb.AddReferencesRequest, context: Context
    ) -> references_pb.AddReferencesResponse:
        """Let a step refer to more."""
        references = translate.references_from(request.references, "references")
        node, revision = await self._memory.add_references(
            ref_of(request.tree_id), request.request_id, request.node_id, references
        )
        return references_pb.AddReferencesResponse(node=translate.node_message(node), revision=revision)

    async def RemoveReferences(  # noqa: N802
        self, request: references_pb.RemoveReferencesRequest, context: Context
    ) -> references_pb.RemoveReferencesResponse:
        """Take added references away."""
        node, revision = await self._memory.remove_references(
            ref_of(request.tree_id), request.request_id, request.node_id, tuple(request.to_node_ids)
        )
        return references_pb.RemoveReferencesResponse(node=translate.node_message(node), revision=revision)

    async def ListDependents(  # noqa: N802
        self, request: references_pb.ListDependentsRequest, context: Context
    ) -> references_pb.ListDependentsResponse:
        """List what refers to a node."""
        nodes, next_after = await self._memory.dependents(
            ref_of(request.tree_id), request.node_id, request.after_node, request.page_size
        )
        return references_pb.ListDependentsResponse(
            nodes=map(translate.node_message, nodes), next_after_node=next_after
        )

    async def Invalidate(  # noqa: N802
        self, request: references_pb.InvalidateRequest, context: Context
    ) -> references_pb.InvalidateResponse:
        """Say that nodes no longer hold."""
        ids = tuple(request.node_ids)
        revision = await self._memory.invalidate(ref_of(request.tree_id), request.request_id, ids, holds=False)
        return references_pb.InvalidateResponse(revision=revision)

    async def Revalidate(  # noqa: N802
        self, request: references_pb.RevalidateRequest, context: Context
    ) -> references_pb.RevalidateResponse:
        """Say that stale nodes hold after all."""
        ids = tuple(request.node_ids)
        revision = await self._memory.invalidate(ref_of(request.tree_id), request.request_id, ids, holds=True)
        return references_pb.RevalidateResponse(revision=revision)

    async def CollectGarbage(  # noqa: N802
        self, request: collect_pb.CollectGarbageRequest, context: Context
    ) -> collect_pb.CollectGarbageResponse:
        """Forget what nobody can reach."""
        asked = (
            ref_of(request.tree_id),
            request.keep_abandoned if request.HasField("keep_abandoned") else None,
            request.keep_revisions if request.HasField("keep_revisions") else None,
            request.page_size,
        )
        if request.dry_run:
            found = await self._memory.garbage(*asked, request.after_node)
            return collect_pb.CollectGarbageResponse(
                dropped_branches=found.branches,
                collected_node_ids=found.nodes,
                done=found.done,
                bytes=found.bytes,
                next_after_node=0 if found.done else found.last,
            )
        if request.after_node:
            raise InvalidArgumentError(
                "after_node: it goes with dry_run; collecting knows its place", field="after_node"
            )
        collected = await self._memory.collect_garbage(*asked)
        return collect_pb.CollectGarbageResponse(
            dropped_branches=collected.branches, collected_node_ids=collected.nodes, done=collected.done
        )

    async def ResumeStep(  # noqa: N802
        self, request: waits_pb.ResumeStepRequest, context: Context
    ) -> waits_pb.ResumeStepResponse:
        """Resolve a step that waits."""
        write = _write(request)
        resolution = translate.enum_of(Resolution, request.resolution, "resolution")
        said = translate.step_from(request.step, "step") if request.HasField("step") else None
        node, branch = await self._memory.resume_step(write, request.node_id, resolution, said)
        return waits_pb.ResumeStepResponse(node=translate.node_message(node), branch=translate.branch_message(branch))

    async def ListWaiting(  # noqa: N802
        self, request: waits_pb.ListWaitingRequest, context: Context
    ) -> waits_pb.ListWaitingResponse:
        """List what waits."""
        found = await self._memory.waiting(ref_of(request.tree_id), request.branch)
        return waits_pb.ListWaitingResponse(
            waiting=[waits_pb.Waiting(branch=name, node=translate.node_message(node)) for name, node in found]
        )

    async def BeginSubgoal(  # noqa: N802
        self, request: subgoals_pb.BeginSubgoalRequest, context: Context
    ) -> subgoals_pb.BeginSubgoalResponse:
        """Begin a subgoal by name."""
        parent = request.parent_subgoal if request.HasField("parent_subgoal") else None
        begun = await self._memory.begin_subgoal(_write(request), request.title, tuple(request.criteria), parent)
        return subgoals_pb.BeginSubgoalResponse(
            subgoal_id=begun.node.node_id,
            boundary_node=begun.node.parent_id,
            parent_subgoal=begun.parent,
            branch=translate.branch_message(begun.branch),
            revision=begun.revision,
        )

    async def EndSubgoal(  # noqa: N802
        self, request: subgoals_pb.EndSubgoalRequest, context: Context
    ) -> subgoals_pb.EndSubgoalResponse:
        """End a subgoal and summarise it."""
        results = {
            name: translate.enum_of(Verdict, said, f"results[{name[:32]!r}]") for name, said in request.results.items()
        }
        body = translate.body_from(request.summary_body) if request.HasField("summary_body") else None
        closing = Closing(body, request.compressor, tuple(request.validators), request.proceed)
        ended = await self._memory.end_subgoal(_write(request), request.subgoal_id, results, closing)
        return subgoals_pb.EndSubgoalResponse(
            subgoal_id=ended.subgoal,
            step=translate.node_message(ended.node),
            outcome=tree_pb.Verdict.ValueType(ended.outcome),
            summary=translate.node_message(ended.closed.node) if isinstance(ended.closed, Written) else None,
            branch=translate.branch_message(ended.branch),
            revision=ended.revision,
            work_id=ended.closed.work_id if isinstance(ended.closed, WorkItem) else "",
        )

    async def UpdateBranch(  # noqa: N802
        self, request: branches_pb.UpdateBranchRequest, context: Context
    ) -> branches_pb.UpdateBranchResponse:
        """Say in which state a branch is, what it is called and what is said of it."""
        head = request.expected_head if request.HasField("expected_head") else None
        write = Write(
            request.request_id, ref_of(request.tree_id), request.branch, head, head is None, request.lease_token
        )
        change = BranchChange(
            translate.enum_of(BranchState, request.state, "state"),
            request.label if request.HasField("label") else None,
            request.note if request.HasField("note") else None,
        )
        marked = await self._memory.update_branch(write, change, request.dry_run)
        return branches_pb.UpdateBranchResponse(
            branch=translate.branch_message(marked.branch),
            revision=marked.revision,
            standing_effects=map(translate.effect_message, marked.effects),
        )

    async def AcquireLease(  # noqa: N802
        self, request: leases_pb.AcquireLeaseRequest, context: Context
    ) -> leases_pb.AcquireLeaseResponse:
        """Take a branch for one writer."""
        branch = await self._memory.acquire_lease(
            ref_of(request.tree_id), request.branch, request.holder, request.ttl_s
        )
        return leases_pb.AcquireLeaseResponse(lease_token=branch.lease_token, branch=translate.branch_message(branch))

    async def RenewLease(  # noqa: N802
        self, request: leases_pb.RenewLeaseRequest, context: Context
    ) -> leases_pb.RenewLeaseResponse:
        """Hold a branch longer."""
        branch = await self._memory.renew_lease(
            ref_of(request.tree_id), request.branch, request.lease_token, request.ttl_s
        )
        return leases_pb.RenewLeaseResponse(branch=translate.branch_message(branch))

    async def ReleaseLease(  # noqa: N802
        self, request: leases_pb.ReleaseLeaseRequest, context: Context
    ) -> leases_pb.ReleaseLeaseResponse:
        """Give a branch back."""
        branch = await self._memory.release_lease(ref_of(request.tree_id), request.branch, request.lease_token)
        return leases_pb.ReleaseLeaseResponse(branch=translate.branch_message(branch))


def _write(
    request: waits_pb.ResumeStepRequest | subgoals_pb.BeginSubgoalRequest | subgoals_pb.EndSubgoalRequest,
) -> Write:
    return Write(
        request.request_id,
        ref_of(request.tree_id),
        request.branch,
        request.expected_head if request.HasField("expected_head") else None,
        request.unconditional,
        request.lease_token,
    )


def ref_of(tree_id: str) -> TreeRef:
    """The tree meant. An id that could name none is simply not found."""
    return TreeRef(current_tenant().tenant_id, TreeId(tree_id))
