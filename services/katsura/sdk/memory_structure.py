"""Client of the memory service, continued: how steps hang together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from katsura.api.memory.v1 import memory_branches_pb2 as branches_pb
from katsura.api.memory.v1 import memory_collect_pb2 as collect_pb
from katsura.api.memory.v1 import memory_leases_pb2 as leases_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_references_pb2 as references_pb
from katsura.api.memory.v1 import memory_subgoals_pb2 as subgoals_pb
from katsura.api.memory.v1 import memory_waits_pb2 as waits_pb
from katsura.sdk.connection import new_request_id


def reference(
    node_id: int,
    kind: tree_pb.ReferenceKind.ValueType = tree_pb.REFERENCE_KIND_DEPENDS_ON,
    *,
    tree_id: str = "",
) -> tree_pb.Reference:
    """What a step has to do with a node made before it."""
    return tree_pb.Reference(node_id=node_id, kind=kind, tree_id=tree_id)


class StructureCalls:
    """The part of `MemoryClient` that is about how steps hang together."""

    async def _call(self, name: str, request: object) -> object:
        raise AssertionError("MemoryClient calls")

    async def add_references(
        self, tree_id: str, node_id: int, references: Sequence[tree_pb.Reference], *, request_id: str = ""
    ) -> tree_pb.Node:
        """Let a step that is there refer to more (`reference`); Grow takes them with the step itself."""
        request = references_pb.AddReferencesRequest(
            request_id=request_id or new_request_id(), tree_id=tree_id, node_id=node_id, references=references
        )
        return cast(references_pb.AddReferencesResponse, await self._call("AddReferences", request)).node

    async def remove_references(
        self, tree_id: str, node_id: int, to_node_ids: Sequence[int], *, request_id: str = ""
    ) -> tree_pb.Node:
        """Take references away that were added to a step; those that it declared stay."""
        request = references_pb.RemoveReferencesRequest(
            request_id=request_id or new_request_id(), tree_id=tree_id, node_id=node_id, to_node_ids=to_node_ids
        )
        return cast(references_pb.RemoveReferencesResponse, await self._call("RemoveReferences", request)).node

    async def list_dependents(
        self, tree_id: str, node_id: int, *, after_node: int = 0, page_size: int = 0
    ) -> references_pb.ListDependentsResponse:
        """A page of the steps that refer to a node; go on with `next_after_node` until it is 0."""
        request = references_pb.ListDependentsRequest(
            tree_id=tree_id, node_id=node_id, after_node=after_node, page_size=page_size
        )
        return cast(references_pb.ListDependentsResponse, await self._call("ListDependents", request))

    async def invalidate(self, tree_id: str, node_ids: Sequence[int], *, request_id: str = "") -> int:
        """Say that nodes no longer hold: they and all that leads to them are stale. The tree's revision."""
        request = references_pb.InvalidateRequest(
            request_id=request_id or new_request_id(), tree_id=tree_id, node_ids=node_ids
        )
        return cast(references_pb.InvalidateResponse, await self._call("Invalidate", request)).revision

    async def revalidate(self, tree_id: str, node_ids: Sequence[int], *, request_id: str = "") -> int:
        """Say that stale nodes hold after all. The tree's revision."""
        request = references_pb.RevalidateRequest(
            request_id=request_id or new_request_id(), tree_id=tree_id, node_ids=node_ids
        )
        return cast(references_pb.RevalidateResponse, await self._call("Revalidate", request)).revision

    async def resume_step(
        self,
        tree_id: str,
        node_id: int,
        resolution: tree_pb.Resolution.ValueType = tree_pb.RESOLUTION_DONE,
        *,
        step: tree_pb.Step | None = None,
        branch: str = "",
        expected_head: int | None = None,
        request_id: str = "",
        lease_token: int = 0,
    ) -> waits_pb.ResumeStepResponse:
        """End the waiting of a step with what came of it; `step` absent says only how it went."""
        request = waits_pb.ResumeStepRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            node_id=node_id,
            resolution=resolution,
            step=step,
            lease_token=lease_token,
        )
        return cast(waits_pb.ResumeStepResponse, await self._call("ResumeStep", request))

    async def list_waiting(self, tree_id: str, *, branch: str = "") -> list[waits_pb.Waiting]:
        """What waits for a tool or an approval on a branch, or on every branch that is ACTIVE."""
        request = waits_pb.ListWaitingRequest(tree_id=tree_id, branch=branch)
        return list(cast(waits_pb.ListWaitingResponse, await self._call("ListWaiting", request)).waiting)

    async def begin_subgoal(
        self,
        tree_id: str,
        title: str,
        criteria: Sequence[str] = (),
        *,
        parent_subgoal: int | None = None,
        branch: str = "",
        expected_head: int | None = None,
        request_id: str = "",
        lease_token: int = 0,
    ) -> subgoals_pb.BeginSubgoalResponse:
        """Begin a subgoal within the innermost open one. Steps state its criteria: attribute "criterion.<name>"."""
        request = subgoals_pb.BeginSubgoalRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            title=title,
            criteria=criteria,
            parent_subgoal=parent_subgoal,
            lease_token=lease_token,
        )
        return cast(subgoals_pb.BeginSubgoalResponse, await self._call("BeginSubgoal", request))

    async def end_subgoal(
        self,
        tree_id: str,
        subgoal_id: int = 0,
        results: Mapping[str, bool] | None = None,
        *,
        summary: tree_pb.SummaryBody | None = None,
        compressor: str = "",
        branch: str = "",
        expected_head: int | None = None,
        request_id: str = "",
        lease_token: int = 0,
    ) -> subgoals_pb.EndSubgoalResponse:
        """End the innermost subgoal and summarise it; `results` says which of its criteria hold, as far as known."""
        verdicts = {True: tree_pb.VERDICT_PASS, False: tree_pb.VERDICT_FAIL}
        request = subgoals_pb.EndSubgoalRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            subgoal_id=subgoal_id,
            results={name: verdicts[holds] for name, holds in (results or {}).items()},
            summary_body=summary,
            compressor=compressor,
            lease_token=lease_token,
        )
        return cast(subgoals_pb.EndSubgoalResponse, await self._call("EndSubgoal", request))

    async def collect_garbage(
        self, tree_id: str, *, keep_abandoned: int | None = None, keep_revisions: int | None = None, page_size: int = 0
    ) -> collect_pb.CollectGarbageResponse:
        """Forget what nobody can reach, from where the last call stopped; call it until `done`."""
        request = collect_pb.CollectGarbageRequest(
            tree_id=tree_id, keep_abandoned=keep_abandoned, keep_revisions=keep_revisions, page_size=page_size
        )
        return cast(collect_pb.CollectGarbageResponse, await self._call("CollectGarbage", request))

    async def garbage(
        self,
        tree_id: str,
        *,
        keep_abandoned: int | None = None,
        keep_revisions: int | None = None,
        after_node: int = 0,
        page_size: int = 0,
    ) -> collect_pb.CollectGarbageResponse:
        """What `collect_garbage` would forget, and its bytes; go on with `next_after_node` until `done`."""
        request = collect_pb.CollectGarbageRequest(
            tree_id=tree_id,
            keep_abandoned=keep_abandoned,
            keep_revisions=keep_revisions,
            page_size=page_size,
            dry_run=True,
            after_node=after_node,
        )
        return cast(collect_pb.CollectGarbageResponse, await self._call("CollectGarbage", request))

    async def update_branch(
        self,
        tree_id: str,
        state: tree_pb.BranchState.ValueType = tree_pb.BRANCH_STATE_UNSPECIFIED,
        *,
        branch: str = "",
        label: str | None = None,
        note: str | None = None,
        expected_head: int | None = None,
        dry_run: bool = False,
        request_id: str = "",
        lease_token: int = 0,
    ) -> branches_pb.UpdateBranchResponse:
        """Say in which state a branch is (only an ACTIVE one takes writes), what it is called and what is said of it;
        with `dry_run` only tell what would be. An ABANDONED one tells which effects it leaves standing outside."""
        request = branches_pb.UpdateBranchRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            state=state,
            label=label,
            note=note,
            expected_head=expected_head,
            lease_token=lease_token,
            dry_run=dry_run,
        )
        return cast(branches_pb.UpdateBranchResponse, await self._call("UpdateBranch", request))

    async def acquire_lease(
        self, tree_id: str, holder: str, *, branch: str = "", ttl_s: int = 0
    ) -> leases_pb.AcquireLeaseResponse:
        """Take a branch for `holder`, `ttl_s` seconds long (0: 60); it is then written under `lease_token` only."""
        request = leases_pb.AcquireLeaseRequest(tree_id=tree_id, branch=branch, holder=holder, ttl_s=ttl_s)
        return cast(leases_pb.AcquireLeaseResponse, await self._call("AcquireLease", request))

    async def renew_lease(self, tree_id: str, lease_token: int, *, branch: str = "", ttl_s: int = 0) -> tree_pb.Branch:
        """Hold a branch longer; also where the lease has ended and nobody took the branch since."""
        request = leases_pb.RenewLeaseRequest(tree_id=tree_id, branch=branch, lease_token=lease_token, ttl_s=ttl_s)
        return cast(leases_pb.RenewLeaseResponse, await self._call("RenewLease", request)).branch

    async def release_lease(self, tree_id: str, lease_token: int, *, branch: str = "") -> tree_pb.Branch:
        """Give a branch back."""
        request = leases_pb.ReleaseLeaseRequest(tree_id=tree_id, branch=branch, lease_token=lease_token)
        return cast(leases_pb.ReleaseLeaseResponse, await self._call("ReleaseLease", request)).branch
