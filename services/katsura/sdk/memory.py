"""Client of the memory service: an agent's tree of steps and summaries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Final, cast

from katsura.api.memory.v1 import memory_archive_pb2 as archive_pb
from katsura.api.memory.v1 import memory_contents_pb2 as contents_pb
from katsura.api.memory.v1 import memory_merge_pb2 as merge_pb
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1 import memory_slots_pb2 as slots_pb
from katsura.api.memory.v1.memory_service_pb2_grpc import MemoryServiceStub
from katsura.rpc.context import CallContext
from katsura.sdk import growing
from katsura.sdk.connection import ATTEMPTS_MAX, Connection, new_request_id
from katsura.sdk.memory_structure import StructureCalls
from katsura.sdk.watching import WatchCalls

_PIECE_BYTES: Final = 1 << 20
EMPTY_ROOT = -1
"""`fork(at_node=EMPTY_ROOT)` makes a branch without steps."""


def step(role: str, content: str, *, client_step_id: str = "", **more: object) -> tree_pb.Step:
    """A message of a conversation as a step; `more` are other fields of `Step`.

    The provenance follows from the role where it is not given.
    """
    provenance = {
        "user": tree_pb.PROVENANCE_USER,
        "assistant": tree_pb.PROVENANCE_MODEL,
        "tool": tree_pb.PROVENANCE_TOOL,
    }
    fields: dict[str, object] = {
        "kind": tree_pb.STEP_KIND_MESSAGE,
        "provenance": provenance.get(role, tree_pb.PROVENANCE_SYSTEM),
        **more,
    }
    return tree_pb.Step(role=role, content=content, client_step_id=client_step_id, **fields)  # type: ignore[arg-type]


class MemoryClient(StructureCalls, WatchCalls):
    """Operations on the trees of one tenant. Errors: see the service's comments in `memory_service.proto`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = MemoryServiceStub(connection.channel)

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> MemoryClient:
        """This client on behalf of `call` (our own processes only)."""
        return MemoryClient(self._connection.acting_for(call, timeout_s))

    async def create_tree(
        self,
        *,
        tree_id: str = "",
        goal: str = "",
        pins: Sequence[str] = (),
        policy: tree_pb.TreePolicy | None = None,
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> pb.CreateTreeResponse:
        """Make a tree with one empty branch; ALREADY_EXISTS where `tree_id` is taken."""
        request = pb.CreateTreeRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            goal=goal,
            pins=pins,
            policy=policy,
            labels=dict(labels or {}),
        )
        return cast(pb.CreateTreeResponse, await self._call("CreateTree", request))

    async def get_tree(self, tree_id: str) -> pb.GetTreeResponse:
        """A tree and its branches."""
        return cast(pb.GetTreeResponse, await self._call("GetTree", pb.GetTreeRequest(tree_id=tree_id)))

    async def list_trees(
        self, *, labels: Mapping[str, str] | None = None, page_size: int = 0, page_token: str = ""
    ) -> pb.ListTreesResponse:
        """A page of trees, newest first; with `labels` of those that have them all, and then it may be short."""
        request = pb.ListTreesRequest(page_size=page_size, page_token=page_token, labels=dict(labels or {}))
        return cast(pb.ListTreesResponse, await self._call("ListTrees", request))

    async def delete_tree(self, tree_id: str) -> None:
        """Drop a tree and everything in it. Sent once: repeated, it might drop what was made in its place."""
        await self._call("DeleteTree", pb.DeleteTreeRequest(tree_id=tree_id), attempts=1)

    async def grow(
        self,
        tree_id: str,
        steps: Sequence[tree_pb.Step],
        *,
        branch: str = "",
        expected_head: int | None = None,
        dedupe: pb.Dedupe.ValueType = pb.DEDUPE_UNSPECIFIED,
        request_id: str = "",
        lease_token: int = 0,
        beside: Sequence[contents_pb.PutAttachmentsRequest] = (),
    ) -> pb.GrowResponse:
        """Append steps. `expected_head` None appends wherever the head is; else a moved head is ABORTED.

        `put_beside` of the answer says which of `beside` were put.
        """
        request = pb.GrowRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            steps=steps,
            dedupe=dedupe,
            lease_token=lease_token,
            beside=beside,
        )
        return cast(pb.GrowResponse, await self._call("Grow", request))

    def grow_stream(
        self,
        tree_id: str,
        batches: AsyncIterable[Sequence[tree_pb.Step]],
        *,
        branch: str = "",
        expected_head: int | None = None,
        lease_token: int = 0,
        in_flight: int = 64,
    ) -> AsyncGenerator[pb.GrowResponse, None]:
        """Append batch after batch and yield an answer for each, with at most `in_flight` unanswered.

        `expected_head` None appends wherever the head is; else the first batch expects it, each other one what the
        batch before it left, and whoever writes in between ends the stream with ABORTED. A service that went away is
        asked again, and every batch is written once. The stream has no deadline: use `asyncio.timeout`.
        """

        async def requests() -> AsyncIterator[pb.GrowRequest]:
            first = expected_head
            async for steps in batches:
                yield pb.GrowRequest(
                    request_id=new_request_id(),
                    tree_id=tree_id,
                    branch=branch,
                    expected_head=first,
                    unconditional=expected_head is None,
                    steps=steps,
                    lease_token=lease_token,
                )
                first = None

        return growing.grow_stream(self._connection, self._stub.GrowStream, requests(), in_flight)

    async def compress(
        self,
        tree_id: str,
        *,
        branch: str = "",
        expected_head: int | None = None,
        last_covered: int = 0,
        summary: tree_pb.SummaryBody | None = None,
        compressor: str = "",
        validators: Sequence[str] = (),
        request_id: str = "",
    ) -> pb.CompressResponse:
        """Close the raw segment with a summary and validate it."""
        request = pb.CompressRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            last_covered=last_covered,
            summary_body=summary,
            compressor=compressor,
            validators=validators,
        )
        return cast(pb.CompressResponse, await self._call("Compress", request))

    async def maintain(
        self,
        tree_id: str,
        *,
        branch: str = "",
        summary_id: int = 0,
        validators: Sequence[str] = (),
        verdict: pb.ExternalVerdict | None = None,
        request_id: str = "",
    ) -> pb.MaintainResponse:
        """Validate a summary again, or record a verdict from outside."""
        request = pb.MaintainRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            summary_id=summary_id,
            validators=validators,
            verdict=verdict,
        )
        return cast(pb.MaintainResponse, await self._call("Maintain", request))

    async def roll_up(
        self,
        tree_id: str,
        *,
        branch: str = "",
        summary: tree_pb.SummaryBody | None = None,
        summary_ids: Sequence[int] = (),
        request_id: str = "",
    ) -> pb.RollUpResponse:
        """Roll up summaries (none named: those that are due) into one of the next level."""
        request = pb.RollUpRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            summary_body=summary,
            summary_ids=summary_ids,
        )
        return cast(pb.RollUpResponse, await self._call("RollUp", request))

    async def revise(
        self,
        tree_id: str,
        *,
        restore_after: int,
        reason: str = "",
        branch: str = "",
        expected_head: int | None = None,
        new_branch: str = "",
        request_id: str = "",
        lease_token: int = 0,
    ) -> pb.ReviseResponse:
        """Go back to `restore_after` on a new branch; the old one is abandoned and leaves a hint."""
        request = pb.ReviseRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            restore_after=restore_after,
            reason=reason,
            new_branch=new_branch,
            lease_token=lease_token,
        )
        return cast(pb.ReviseResponse, await self._call("Revise", request))

    async def fork(
        self,
        tree_id: str,
        *,
        branch: str = "",
        at_node: int = 0,
        new_branch: str = "",
        new_tree_id: str = "",
        goal: str = "",
        agent_id: str = "",
        request_id: str = "",
    ) -> pb.ForkResponse:
        """Name a new branch at a step of `branch` (0: its head, `EMPTY_ROOT`: the root), or begin the tree
        `new_tree_id` there, for another agent with a goal of its own."""
        request = pb.ForkRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            at_node=at_node,
            new_branch=new_branch,
            new_tree_id=new_tree_id,
            goal=goal,
            agent_id=agent_id,
        )
        return cast(pb.ForkResponse, await self._call("Fork", request))

    async def assemble_context(
        self,
        tree_id: str,
        *,
        budget_tokens: int,
        reserve_tokens: int = 0,
        branch: str = "",
        tokenizer_digest: str = "",
        include_token_ids: bool = False,
        expand: Sequence[int] = (),
    ) -> pb.AssembleContextResponse:
        """The prompt of a branch under a token budget; the summaries `expand` by what they stand for, where it fits."""
        request = pb.AssembleContextRequest(
            tree_id=tree_id,
            branch=branch,
            budget_tokens=budget_tokens,
            reserve_tokens=reserve_tokens,
            tokenizer_digest=tokenizer_digest,
            include_token_ids=include_token_ids,
            expand=expand,
        )
        return cast(pb.AssembleContextResponse, await self._call("AssembleContext", request))

    async def recall(
        self, tree_id: str, query: str, *, budget_tokens: int, branch: str = "", most_summaries: int = 0
    ) -> pb.RecallResponse:
        """Steps that summaries stand for and that have to do with `query`, in at most `budget_tokens`."""
        request = pb.RecallRequest(
            tree_id=tree_id, branch=branch, query=query, budget_tokens=budget_tokens, most_summaries=most_summaries
        )
        return cast(pb.RecallResponse, await self._call("Recall", request))

    async def attach_tokens(
        self, tree_id: str, tokenizer_digest: str, ids_by_node: Mapping[int, Sequence[int]]
    ) -> pb.AttachTokensResponse:
        """Attach rendered ids to nodes; the first ones attached stay."""
        request = pb.AttachTokensRequest(
            tree_id=tree_id,
            tokenizer_digest=tokenizer_digest,
            nodes=[pb.NodeTokens(node_id=node, token_ids=ids) for node, ids in ids_by_node.items()],
        )
        return cast(pb.AttachTokensResponse, await self._call("AttachTokens", request))

    async def get_path(
        self, tree_id: str, *, branch: str = "", end_node: int = 0, page_size: int = 0
    ) -> pb.GetPathResponse:
        """A page of a branch's steps that ends at `end_node` (0: the head), oldest first."""
        request = pb.GetPathRequest(tree_id=tree_id, branch=branch, end_node=end_node, page_size=page_size)
        return cast(pb.GetPathResponse, await self._call("GetPath", request))

    async def get_whole_path(self, tree_id: str, *, branch: str = "", end_node: int = 0) -> list[tree_pb.Node]:
        """All steps from the root to `end_node` (0: the head), oldest first."""
        pages: list[list[tree_pb.Node]] = []
        while True:
            page = await self.get_path(tree_id, branch=branch, end_node=end_node)
            pages.append(list(page.nodes))
            end_node = page.next_end_node
            if not end_node:
                return [node for nodes in reversed(pages) for node in nodes]

    async def get_nodes(self, tree_id: str, node_ids: Sequence[int]) -> list[tree_pb.Node]:
        """Nodes by id, in the order asked for."""
        request = pb.GetNodesRequest(tree_id=tree_id, node_ids=node_ids)
        return list(cast(pb.GetNodesResponse, await self._call("GetNodes", request)).nodes)

    async def update_tree(
        self,
        tree_id: str,
        *,
        goal: str | None = None,
        add_pins: Sequence[str] = (),
        remove_pins: Sequence[str] = (),
        set_labels: Mapping[str, str] | None = None,
        remove_labels: Sequence[str] = (),
        default_branch: str = "",
        retention: tree_pb.Retention | None = None,
        ttl_s: int | None = None,
        request_id: str = "",
    ) -> tree_pb.Tree:
        """Change goal, pins, labels, retention or time to live, or switch to another default branch; what is not named
        stays."""
        request = contents_pb.UpdateTreeRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            goal=goal,
            add_pins=add_pins,
            remove_pins=remove_pins,
            set_labels=dict(set_labels or {}),
            remove_labels=remove_labels,
            default_branch=default_branch,
            retention=retention,
            ttl_s=ttl_s,
        )
        return cast(contents_pb.UpdateTreeResponse, await self._call("UpdateTree", request)).tree

    async def list_branches(
        self,
        tree_id: str,
        *,
        states: Sequence[tree_pb.BranchState.ValueType] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> contents_pb.ListBranchesResponse:
        """A page of branches, newest first."""
        request = contents_pb.ListBranchesRequest(
            tree_id=tree_id, states=states, page_size=page_size, page_token=page_token
        )
        return cast(contents_pb.ListBranchesResponse, await self._call("ListBranches", request))

    async def put_attachments(
        self, tree_id: str, node_id: int, attachments: Sequence[tree_pb.Attachment], *, replace: bool = False
    ) -> contents_pb.PutAttachmentsResponse:
        """Put bytes beside a node, keyed by (task, index); without `replace` the first ones put stay.

        With `replace` the call is sent once: repeated, it might replace what another writer put since.
        """
        request = contents_pb.PutAttachmentsRequest(
            tree_id=tree_id, node_id=node_id, attachments=attachments, replace=replace
        )
        attempts = 1 if replace else ATTEMPTS_MAX
        return cast(contents_pb.PutAttachmentsResponse, await self._call("PutAttachments", request, attempts))

    async def list_nodes(
        self,
        tree_id: str,
        *,
        before_node: int = 0,
        page_size: int = 0,
        birth_branch: str = "",
        attributes: Mapping[str, str] | None = None,
        agent_id: str = "",
    ) -> contents_pb.ListNodesResponse:
        """A page of nodes of all branches, newest first; go on with `next_before_node` until it is 0."""
        request = contents_pb.ListNodesRequest(
            tree_id=tree_id,
            before_node=before_node,
            page_size=page_size,
            birth_branch=birth_branch,
            attributes=dict(attributes or {}),
            agent_id=agent_id,
        )
        return cast(contents_pb.ListNodesResponse, await self._call("ListNodes", request))

    async def find_steps(
        self, tree_id: str, client_step_ids: Sequence[str], *, branch: str = ""
    ) -> list[contents_pb.FoundStep]:
        """Steps by the ids that the client gave them, on `branch` or on every branch."""
        request = contents_pb.FindStepsRequest(tree_id=tree_id, client_step_ids=client_step_ids, branch=branch)
        return list(cast(contents_pb.FindStepsResponse, await self._call("FindSteps", request)).found)

    async def search(
        self,
        tree_id: str,
        query: str,
        *,
        branch: str = "",
        scope: contents_pb.SearchScope.ValueType = contents_pb.SEARCH_SCOPE_UNSPECIFIED,
        include_abandoned: bool = False,
        page_size: int = 0,
        before_node: int = 0,
    ) -> contents_pb.SearchResponse:
        """Nodes that say every word of `query`, newest first; go on with `next_before_node` until it is 0."""
        request = contents_pb.SearchRequest(
            tree_id=tree_id,
            branch=branch,
            query=query,
            scope=scope,
            include_abandoned=include_abandoned,
            page_size=page_size,
            before_node=before_node,
        )
        return cast(contents_pb.SearchResponse, await self._call("Search", request))

    async def set_slots(
        self,
        tree_id: str,
        writes: Sequence[slots_pb.SlotWrite],
        *,
        branch: str = "",
        request_id: str = "",
        lease_token: int = 0,
    ) -> list[tree_pb.Node]:
        """Write named values of a branch, all or none; `set_slot` for one."""
        request = slots_pb.SetSlotsRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            writes=writes,
            lease_token=lease_token,
        )
        return list(cast(slots_pb.SetSlotsResponse, await self._call("SetSlots", request)).nodes)

    async def set_slot(
        self,
        tree_id: str,
        key: str,
        value: str = "",
        *,
        branch: str = "",
        relation: tree_pb.Relation.ValueType = tree_pb.RELATION_UNSPECIFIED,
        note: str = "",
        expected_node: int | None = None,
    ) -> tree_pb.Node:
        """Write one named value; `RELATION_ROLLBACK` brings the value before it back."""
        write = slots_pb.SlotWrite(key=key, value=value, relation=relation, note=note, expected_node=expected_node)
        return (await self.set_slots(tree_id, [write], branch=branch))[0]

    async def get_slots(self, tree_id: str, *, branch: str = "") -> dict[str, str]:
        """The named values of a branch."""
        request = slots_pb.GetSlotsRequest(tree_id=tree_id, branch=branch)
        nodes = cast(slots_pb.GetSlotsResponse, await self._call("GetSlots", request)).nodes
        return {node.slot.key: node.slot.value for node in nodes}

    async def slot_history(self, tree_id: str, key: str, *, branch: str = "") -> list[tree_pb.Node]:
        """The writes of one named value on a branch's path, newest first."""
        request = slots_pb.GetSlotHistoryRequest(tree_id=tree_id, branch=branch, key=key)
        return list(cast(slots_pb.GetSlotHistoryResponse, await self._call("GetSlotHistory", request)).nodes)

    async def diff(
        self, tree_id: str, other_branch: str, *, branch: str = "", page_size: int = 0
    ) -> merge_pb.DiffResponse:
        """Where two branches parted, and what each has that the other has not."""
        request = merge_pb.DiffRequest(tree_id=tree_id, branch=branch, other_branch=other_branch, page_size=page_size)
        return cast(merge_pb.DiffResponse, await self._call("Diff", request))

    async def merge(
        self,
        tree_id: str,
        source: str,
        *,
        source_tree_id: str = "",
        branch: str = "",
        expected_head: int | None = None,
        pick: Sequence[int] = (),
        text: str = "",
        on_conflict: merge_pb.ConflictPolicy.ValueType = merge_pb.CONFLICT_POLICY_UNSPECIFIED,
        request_id: str = "",
        lease_token: int = 0,
        close_source: bool = False,
    ) -> merge_pb.MergeResponse:
        """Bring the work of `source`, a branch of this tree or of one forked off it, to a branch: one note that tells
        of it, or copies of the steps in `pick`. `close_source` makes a branch that is done MERGED."""
        request = merge_pb.MergeRequest(
            request_id=request_id or new_request_id(),
            tree_id=tree_id,
            branch=branch,
            expected_head=expected_head,
            unconditional=expected_head is None,
            source=source,
            source_tree_id=source_tree_id,
            pick=pick,
            text=text,
            on_conflict=on_conflict,
            lease_token=lease_token,
            close_source=close_source,
        )
        return cast(merge_pb.MergeResponse, await self._call("Merge", request))

    async def export_tree(self, tree_id: str) -> AsyncIterator[bytes]:
        """The archive of a tree as it is now: JSON lines, to be written to a file piece by piece."""
        request = archive_pb.ExportTreeRequest(tree_id=tree_id)
        async for response in self._connection.stream(self._stub.ExportTree, request):
            yield cast(archive_pb.ExportTreeResponse, response).lines

    async def import_tree(self, pieces: AsyncIterable[bytes], *, tree_id: str = "") -> archive_pb.ImportTreeResponse:
        """Make a tree from an archive, cut anywhere; never repeated by itself, since the pieces are read once."""

        async def requests() -> AsyncIterator[archive_pb.ImportTreeRequest]:
            async for piece in pieces:
                for at in range(0, len(piece), _PIECE_BYTES):
                    yield archive_pb.ImportTreeRequest(tree_id=tree_id, lines=piece[at : at + _PIECE_BYTES])

        answer = await self._connection.unary(self._stub.ImportTree, "memory.ImportTree", requests(), attempts=1)
        return cast(archive_pb.ImportTreeResponse, answer)

    async def freeze_tree(self, tree_id: str) -> bool:
        """Move a tree into an object file; False where it changed meanwhile, has tasks or a time to live, and stays."""
        request = archive_pb.FreezeTreeRequest(tree_id=tree_id)
        return cast(archive_pb.FreezeTreeResponse, await self._call("FreezeTree", request)).frozen

    async def verify_tree(self, tree_id: str) -> archive_pb.VerifyTreeResponse:
        """Compute every hash of a tree again."""
        request = archive_pb.VerifyTreeRequest(tree_id=tree_id)
        return cast(archive_pb.VerifyTreeResponse, await self._call("VerifyTree", request))

    async def redact(self, tree_id: str, node_ids: Sequence[int], *, request_id: str = "") -> list[int]:
        """Destroy the content of nodes, and of what may quote it; the ids of all that were redacted."""
        request = contents_pb.RedactRequest(
            request_id=request_id or new_request_id(), tree_id=tree_id, node_ids=node_ids
        )
        return list(cast(contents_pb.RedactResponse, await self._call("Redact", request)).redacted_node_ids)

    async def _call(self, name: str, request: object, attempts: int = ATTEMPTS_MAX) -> object:
        return await self._connection.unary(getattr(self._stub, name), f"memory.{name}", request, attempts=attempts)
