"""The memory service on gRPC: messages in, messages out, everything else in `service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from functools import partial
from typing import Any, Final, cast

import grpc

from katsura.api.memory.v1 import memory_archive_pb2 as archive_pb
from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_merge_pb2 as merge_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1 import memory_slots_pb2 as slots_pb
from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.domain.trees import BranchState
from katsura.domain.work import WorkItem
from katsura.memory import translate
from katsura.memory.core import limits
from katsura.memory.core.merge import ConflictPolicy
from katsura.memory.descent import Offshoot
from katsura.memory.operations import Write
from katsura.memory.structure_server import StructureServicer, ref_of
from katsura.memory.watching import gathered, of_kinds
from katsura.rpc.context import current_tenant
from katsura.state.contents import Scope
from katsura.state.trees import Event, Grown

Context = grpc.aio.ServicerContext[Any, Any]
_BESIDE_MAX: Final = 64
_HEARD_OUT: Final = 64
"""Messages of an import that was refused; our client's are of 1 MiB."""
_DEDUPES: Final = frozenset(pb.Dedupe.values())
WriteRequest = pb.GrowRequest | pb.CompressRequest | pb.ReviseRequest | merge_pb.MergeRequest


class MemoryServicer(StructureServicer):
    """`katsura.api.memory.v1.MemoryService`."""

    async def CreateTree(self, request: pb.CreateTreeRequest, context: Context) -> pb.CreateTreeResponse:  # noqa: N802
        """Make a tree with one empty branch."""
        tree, branch = await self._memory.create_tree(
            current_tenant().tenant_id,
            request.request_id,
            request.tree_id,
            request.goal,
            tuple(request.pins),
            translate.policy_from(request.policy),
            dict(request.labels),
        )
        return pb.CreateTreeResponse(tree=translate.tree_message(tree), branch=translate.branch_message(branch))

    async def GetTree(self, request: pb.GetTreeRequest, context: Context) -> pb.GetTreeResponse:  # noqa: N802
        """Read a tree and its branches."""
        tree, branches = await self._memory.get_tree(ref_of(request.tree_id))
        return pb.GetTreeResponse(
            tree=translate.tree_message(tree), branches=[translate.branch_message(branch) for branch in branches]
        )

    async def ListTrees(self, request: pb.ListTreesRequest, context: Context) -> pb.ListTreesResponse:  # noqa: N802
        """List trees, newest first."""
        tenant = current_tenant().tenant_id
        labels = dict(request.labels)
        trees, token = await self._memory.list_trees(tenant, request.page_size, request.page_token, labels)
        return pb.ListTreesResponse(trees=[translate.tree_message(tree) for tree in trees], next_page_token=token)

    async def DeleteTree(self, request: pb.DeleteTreeRequest, context: Context) -> pb.DeleteTreeResponse:  # noqa: N802
        """Drop a tree."""
        await self._memory.delete_tree(ref_of(request.tree_id))
        return pb.DeleteTreeResponse()

    async def Grow(self, request: pb.GrowRequest, context: Context) -> pb.GrowResponse:  # noqa: N802
        """Append steps."""
        return await self._grown(request)

    async def GrowStream(  # noqa: N802
        self, requests: AsyncIterator[pb.GrowStreamRequest], context: Context
    ) -> AsyncIterator[pb.GrowStreamResponse]:
        """Append steps to one branch, request after request."""
        first: pb.GrowRequest | None = None
        head = 0
        async for message in requests:
            request = message.grow
            if first is None:
                first = request
            elif (request.tree_id, request.branch) != (first.tree_id, first.branch):
                field = "branch" if request.tree_id == first.tree_id else "tree_id"
                raise InvalidArgumentError(f"{field}: a stream grows one branch; open another for this", field=field)
            elif not (request.unconditional or request.HasField("expected_head")):
                request.expected_head = head
            if self._admission is not None:
                await self._admission.admit("Grow", current_tenant().tenant_id, request)
            response = await self._grown(request)
            head = response.branch.head
            yield pb.GrowStreamResponse(grow=response)

    async def _grown(self, request: pb.GrowRequest) -> pb.GrowResponse:
        steps = [translate.step_from(step, f"steps[{i}]") for i, step in enumerate(request.steps)]
        if request.dedupe not in _DEDUPES:
            raise InvalidArgumentError(f"dedupe: {request.dedupe} is not a Dedupe", field="dedupe")
        growing = self._memory.grow(_write(request), steps, request.dedupe != pb.DEDUPE_ALWAYS_NEW)
        grown, beside = await self._with_beside(growing, request) if request.beside else (await growing, ())
        return pb.GrowResponse(
            node_ids=grown.node_ids,
            merged=grown.merged,
            branch=translate.branch_message(grown.branch),
            compress_due=grown.compress_due,
            position=translate.position_message(grown.position),
            put_beside=beside,
        )

    async def _with_beside(
        self, growing: Coroutine[Any, Any, Grown], request: pb.GrowRequest
    ) -> tuple[Grown, Sequence[bool]]:
        """What was grown, and which of `beside` were put: sent together, and neither waits for the other."""
        own = ("", request.tree_id)
        if len(request.beside) > _BESIDE_MAX or any(put.replace or put.tree_id not in own for put in request.beside):
            growing.close()
            raise limits.refuse("beside", f"at most {_BESIDE_MAX} are taken, of this tree, and none that replaces")
        puts = [self._put(request.tree_id, put) for put in request.beside]
        *done, grown = await asyncio.gather(*puts, growing, return_exceptions=True)
        if isinstance(grown, BaseException):
            raise grown
        for failure in done:
            if isinstance(failure, BaseException) and not isinstance(failure, KatsuraError):
                raise failure
        return cast(Grown, grown), [not isinstance(answer, BaseException) for answer in done]

    async def Compress(self, request: pb.CompressRequest, context: Context) -> pb.CompressResponse:  # noqa: N802
        """Close the raw segment with a summary."""
        if request.on_pending not in pb.OnPending.values():
            raise InvalidArgumentError(f"on_pending: {request.on_pending} is not an OnPending", field="on_pending")
        written = await self._memory.compress(
            _write(request),
            request.last_covered,
            translate.body_from(request.summary_body) if request.HasField("summary_body") else None,
            request.compressor,
            tuple(request.validators),
            request.on_pending == pb.ON_PENDING_PROCEED,
        )
        if isinstance(written, WorkItem):
            return pb.CompressResponse(work_id=written.work_id)
        return pb.CompressResponse(
            summary=translate.node_message(written.node),
            branch=translate.branch_message(written.branch),
            checks=translate.check_messages(written.node.judgement),
            position=translate.position_message(written.position),
        )

    async def Maintain(self, request: pb.MaintainRequest, context: Context) -> pb.MaintainResponse:  # noqa: N802
        """Validate a summary again, or record a verdict from outside."""
        written = await self._memory.maintain(
            ref_of(request.tree_id),
            request.request_id,
            request.branch,
            request.summary_id,
            tuple(request.validators),
            translate.outside_from(request.verdict) if request.HasField("verdict") else None,
        )
        return pb.MaintainResponse(
            summary=translate.node_message(written.node),
            checks=translate.check_messages(written.node.judgement),
            position=translate.position_message(written.position),
        )

    async def RollUp(self, request: pb.RollUpRequest, context: Context) -> pb.RollUpResponse:  # noqa: N802
        """Roll up summaries into one of the next level."""
        written = await self._memory.roll_up(
            ref_of(request.tree_id),
            request.request_id,
            request.branch,
            translate.body_from(request.summary_body) if request.HasField("summary_body") else None,
            tuple(request.summary_ids),
        )
        return pb.RollUpResponse(
            summary=translate.node_message(written.node),
            checks=translate.check_messages(written.node.judgement),
            position=translate.position_message(written.position),
        )

    async def Revise(self, request: pb.ReviseRequest, context: Context) -> pb.ReviseResponse:  # noqa: N802
        """Go back to a boundary on a new branch."""
        move_default = request.keep_default if request.HasField("keep_default") else True
        revised = await self._memory.revise(
            _write(request), request.restore_after, request.reason, request.new_branch, move_default
        )
        return pb.ReviseResponse(
            branch=translate.branch_message(revised.branch),
            abandoned=translate.branch_message(revised.abandoned),
            hint=translate.node_message(revised.hint),
            standing_effects=[translate.effect_message(effect) for effect in revised.effects],
            position=translate.position_message(revised.position),
        )

    async def Fork(self, request: pb.ForkRequest, context: Context) -> pb.ForkResponse:  # noqa: N802
        """Name a new branch, or begin a new tree, at any step."""
        ref = ref_of(request.tree_id)
        if request.new_tree_id:
            if request.new_branch:
                raise InvalidArgumentError("new_branch: new_tree_id is given too; send one of them", field="new_branch")
            if self._admission is not None:  # the boundary has admitted a branch, and this is a tree
                await self._admission.admit("CreateTree", ref.tenant)
            off = Offshoot(request.branch, request.at_node, request.goal, request.agent_id)
            tree, branch = await self._memory.fork_tree(ref, request.request_id, request.new_tree_id, off)
            return pb.ForkResponse(branch=translate.branch_message(branch), tree=translate.tree_message(tree))
        branch, position = await self._memory.fork(
            ref, request.request_id, request.branch, request.at_node, request.new_branch, request.agent_id
        )
        return pb.ForkResponse(branch=translate.branch_message(branch), position=translate.position_message(position))

    async def AssembleContext(  # noqa: N802
        self, request: pb.AssembleContextRequest, context: Context
    ) -> pb.AssembleContextResponse:
        """Assemble the prompt of a branch."""
        assembled = await self._memory.assemble_context(
            ref_of(request.tree_id),
            request.branch,
            request.budget_tokens,
            request.reserve_tokens,
            request.tokenizer_digest,
            request.include_token_ids,
            tuple(request.expand),
        )
        assembly = assembled.assembly
        return pb.AssembleContextResponse(
            segments=[translate.segment_message(segment) for segment in assembly.segments],
            total_tokens=assembly.total_tokens,
            dropped=[translate.dropped_message(dropped) for dropped in assembly.dropped],
            untokenized_node_ids=assembly.untokenized,
            cut_moved=assembled.cut_moved,
            branch=translate.branch_message(assembled.branch),
            position=translate.position_message(assembled.position),
            stale_steps=map(translate.stale_message, assembled.stale),
        )

    async def Recall(self, request: pb.RecallRequest, context: Context) -> pb.RecallResponse:  # noqa: N802
        """Bring steps back that summaries stand for."""
        found = await self._memory.recall(
            ref_of(request.tree_id), request.branch, request.query, request.budget_tokens, request.most_summaries
        )
        return pb.RecallResponse(
            segments=map(translate.segment_message, found.segments),
            total_tokens=found.total_tokens,
            summaries=[pb.RecalledSummary(node_id=one.node.node_id, score=one.score) for one in found.chosen],
            dropped=map(translate.dropped_message, found.dropped),
        )

    async def AttachTokens(  # noqa: N802
        self, request: pb.AttachTokensRequest, context: Context
    ) -> pb.AttachTokensResponse:
        """Attach the token ids of rendered segments."""
        tokens = [(node.node_id, tuple(node.token_ids)) for node in request.nodes]
        kept = await self._memory.attach_tokens(ref_of(request.tree_id), request.tokenizer_digest, tokens)
        return pb.AttachTokensResponse(kept_node_ids=kept)

    async def GetPath(self, request: pb.GetPathRequest, context: Context) -> pb.GetPathResponse:  # noqa: N802
        """Read the steps of a branch's path."""
        path = await self._memory.get_path(ref_of(request.tree_id), request.branch, request.end_node, request.page_size)
        return pb.GetPathResponse(
            nodes=[translate.node_message(node) for node in path.nodes],
            next_end_node=path.next_end,
            branch=translate.branch_message(path.branch),
        )

    async def GetNodes(self, request: pb.GetNodesRequest, context: Context) -> pb.GetNodesResponse:  # noqa: N802
        """Read nodes by id."""
        nodes = await self._memory.get_nodes(ref_of(request.tree_id), tuple(request.node_ids))
        return pb.GetNodesResponse(nodes=[translate.node_message(node) for node in nodes])

    async def UpdateTree(  # noqa: N802
        self, request: contents_pb.UpdateTreeRequest, context: Context
    ) -> contents_pb.UpdateTreeResponse:
        """Change goal, pins, labels or the default branch."""
        change = translate.change_from(request)
        tree = await self._memory.update_tree(ref_of(request.tree_id), request.request_id, change)
        return contents_pb.UpdateTreeResponse(tree=translate.tree_message(tree))

    async def ListBranches(  # noqa: N802
        self, request: contents_pb.ListBranchesRequest, context: Context
    ) -> contents_pb.ListBranchesResponse:
        """List branches, newest first."""
        states = [translate.enum_of(BranchState, state, f"states[{i}]") for i, state in enumerate(request.states)]
        page = await self._memory.list_branches(ref_of(request.tree_id), states, request.page_size, request.page_token)
        return contents_pb.ListBranchesResponse(
            branches=map(translate.branch_message, page.branches),
            next_page_token=page.next_page,
            path_tokens=page.path_tokens,
        )

    async def PutAttachments(  # noqa: N802
        self, request: contents_pb.PutAttachmentsRequest, context: Context
    ) -> contents_pb.PutAttachmentsResponse:
        """Put bytes beside a node."""
        written, revision = await self._put(request.tree_id, request)
        return contents_pb.PutAttachmentsResponse(written=written, revision=revision)

    async def _put(self, tree_id: str, request: contents_pb.PutAttachmentsRequest) -> tuple[tuple[bool, ...], int]:
        attachments = translate.attachments_from(request.attachments)
        return await self._memory.put_attachments(ref_of(tree_id), request.node_id, attachments, request.replace)

    async def ListNodes(  # noqa: N802
        self, request: contents_pb.ListNodesRequest, context: Context
    ) -> contents_pb.ListNodesResponse:
        """List nodes, newest first."""
        page = await self._memory.list_nodes(
            ref_of(request.tree_id),
            request.before_node,
            request.page_size,
            request.birth_branch,
            dict(request.attributes),
            request.agent_id,
        )
        return contents_pb.ListNodesResponse(
            nodes=[translate.node_message(node) for node in page.nodes], next_before_node=page.next_before
        )

    async def FindSteps(  # noqa: N802
        self, request: contents_pb.FindStepsRequest, context: Context
    ) -> contents_pb.FindStepsResponse:
        """Find steps by their client ids."""
        found = await self._memory.find_steps(ref_of(request.tree_id), tuple(request.client_step_ids), request.branch)
        return contents_pb.FindStepsResponse(
            found=[
                contents_pb.FoundStep(
                    client_step_id=step.client_step_id, branch=step.branch, node=translate.node_message(node)
                )
                for step, node in found
            ]
        )

    async def Search(  # noqa: N802
        self, request: contents_pb.SearchRequest, context: Context
    ) -> contents_pb.SearchResponse:
        """Find nodes by their words."""
        hits, next_before = await self._memory.search(
            ref_of(request.tree_id),
            translate.enum_of(Scope, request.scope, "scope"),
            request.branch,
            request.query,
            request.before_node,
            request.page_size,
            request.include_abandoned,
        )
        return contents_pb.SearchResponse(
            hits=[translate.hit_message(hit) for hit in hits], next_before_node=next_before
        )

    async def Redact(  # noqa: N802
        self, request: contents_pb.RedactRequest, context: Context
    ) -> contents_pb.RedactResponse:
        """Destroy the content of nodes."""
        ids, revision = await self._memory.redact(ref_of(request.tree_id), request.request_id, tuple(request.node_ids))
        return contents_pb.RedactResponse(redacted_node_ids=ids, revision=revision)

    async def SetSlots(self, request: slots_pb.SetSlotsRequest, context: Context) -> slots_pb.SetSlotsResponse:  # noqa: N802
        """Write named values."""
        writes = [translate.slot_from(write, f"writes[{i}]") for i, write in enumerate(request.writes)]
        nodes, revision = await self._memory.set_slots(
            ref_of(request.tree_id), request.request_id, request.branch, writes, request.lease_token
        )
        return slots_pb.SetSlotsResponse(nodes=map(translate.node_message, nodes), revision=revision)

    async def GetSlots(self, request: slots_pb.GetSlotsRequest, context: Context) -> slots_pb.GetSlotsResponse:  # noqa: N802
        """Read named values."""
        nodes = await self._memory.get_slots(ref_of(request.tree_id), request.branch)
        return slots_pb.GetSlotsResponse(nodes=map(translate.node_message, nodes))

    async def GetSlotHistory(  # noqa: N802
        self, request: slots_pb.GetSlotHistoryRequest, context: Context
    ) -> slots_pb.GetSlotHistoryResponse:
        """Read the writes of one named value."""
        nodes = await self._memory.slot_history(ref_of(request.tree_id), request.branch, request.key, request.page_size)
        return slots_pb.GetSlotHistoryResponse(nodes=map(translate.node_message, nodes))

    async def Diff(self, request: merge_pb.DiffRequest, context: Context) -> merge_pb.DiffResponse:  # noqa: N802
        """Compare two branches."""
        found = await self._memory.diff(
            ref_of(request.tree_id), request.branch, request.other_branch, request.page_size
        )
        return merge_pb.DiffResponse(
            common_node=found.common,
            ours=map(translate.node_message, found.ours),
            theirs=map(translate.node_message, found.theirs),
            ours_count=found.ours_count,
            theirs_count=found.theirs_count,
            slots=[
                merge_pb.SlotDifference(
                    key=slot.key,
                    ours=translate.node_message(slot.ours) if slot.ours else None,
                    theirs=translate.node_message(slot.theirs) if slot.theirs else None,
                )
                for slot in found.slots
            ],
        )

    async def Merge(self, request: merge_pb.MergeRequest, context: Context) -> merge_pb.MergeResponse:  # noqa: N802
        """Bring work from one branch to another."""
        brought = await self._memory.merge(
            _write(request),
            request.source,
            tuple(request.pick),
            request.text,
            translate.enum_of(ConflictPolicy, request.on_conflict, "on_conflict"),
            request.source_tree_id,
            request.close_source,
        )
        return merge_pb.MergeResponse(
            steps=map(translate.node_message, brought.steps),
            slots=map(translate.node_message, brought.slots),
            conflicting_keys=brought.conflicts,
            branch=translate.branch_message(brought.branch),
            common_node=brought.common,
            revision=brought.revision,
        )

    async def ExportTree(  # noqa: N802
        self, request: archive_pb.ExportTreeRequest, context: Context
    ) -> AsyncIterator[archive_pb.ExportTreeResponse]:
        """Write a tree down."""
        async for lines in self._memory.export(ref_of(request.tree_id)):
            yield archive_pb.ExportTreeResponse(lines=lines)

    async def ImportTree(  # noqa: N802
        self, requests: AsyncIterator[archive_pb.ImportTreeRequest], context: Context
    ) -> archive_pb.ImportTreeResponse:
        """Make a tree from an archive."""
        first = await anext(requests, archive_pb.ImportTreeRequest())

        async def pieces() -> AsyncIterator[bytes]:
            yield first.lines
            async for request in requests:
                yield request.lines

        tenant, admission = current_tenant().tenant_id, self._admission
        fits = partial(admission.fits, tenant) if admission is not None else None
        try:
            tree, digest = await self._memory.import_tree(tenant, first.tree_id, pieces(), fits)
        except KatsuraError:
            # Heard out first: a client whose message crosses the end of its stream may lose why it ended (rpc.status).
            left = _HEARD_OUT
            async for _ in requests:
                if not (left := left - 1):
                    break
            raise
        return archive_pb.ImportTreeResponse(tree=translate.tree_message(tree), root_digest=digest)

    async def FreezeTree(  # noqa: N802
        self, request: archive_pb.FreezeTreeRequest, context: Context
    ) -> archive_pb.FreezeTreeResponse:
        """Move a tree into an object."""
        return archive_pb.FreezeTreeResponse(frozen=await self._memory.freeze(ref_of(request.tree_id)))

    async def VerifyTree(  # noqa: N802
        self, request: archive_pb.VerifyTreeRequest, context: Context
    ) -> archive_pb.VerifyTreeResponse:
        """Compute every hash of a tree again."""
        found = await self._memory.verify(ref_of(request.tree_id))
        return archive_pb.VerifyTreeResponse(
            node_count=found.nodes,
            redacted_count=found.redacted,
            root_digest=found.root_digest,
            mismatches=[archive_pb.Mismatch(node_id=node, what=what) for node, what in found.mismatches],
        )

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        """Stream every commit after a point."""
        if request.tree_ids or request.labels or request.resume_tokens:
            events = self._memory.watch_many(current_tenant().tenant_id, translate.followed_from(request))
        else:
            events = self._memory.watch(ref_of(request.tree_id), request.resume_token, request.after_revision)
        stream = cast(AsyncGenerator[Event, None], events)
        if request.kinds:
            stream = of_kinds(stream, translate.kinds_from(request))
        async for batch in gathered(stream, min(request.events_per_message, limits.NODES_MAX)):
            first, *more = [translate.event_message(event) for event in batch]
            if request.include_content:
                await self._fill(first, *more)
            first.more.extend(more)
            yield first

    async def _fill(self, *messages: pb.WatchResponse) -> None:
        """Put the nodes of commits that travel together beside them, as far as one message holds them."""
        left = limits.ANSWER_BYTES_MAX
        for message in messages:
            nodes = await self._memory.nodes_of_event(ref_of(message.tree_id), message.node_ids, left)
            message.nodes.extend(map(translate.node_message, nodes))
            left -= sum(node.ByteSize() for node in message.nodes)


def _write(request: WriteRequest) -> Write:
    return Write(
        request_id=request.request_id,
        tree=ref_of(request.tree_id),
        branch=request.branch,
        expected_head=request.expected_head if request.HasField("expected_head") else None,
        unconditional=request.unconditional,
        lease_token=0 if isinstance(request, pb.CompressRequest) else request.lease_token,
    )
