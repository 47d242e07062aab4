"""Tasks for workers outside: what a worker is told, and what becomes of its results.

A worker's summary passes the tree's own validators before it is written, and what it says is trusted no more than what
an agent says: FAILED is never shown, PENDING waits for the verdict of another worker, with the raw steps in its place.
Obligations that are open are carried along whatever a worker says.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from katsura.domain.errors import ConflictError, FailedPreconditionError, NotFoundError, Reason
from katsura.domain.ids import NodeId, TenantId, checked_name
from katsura.domain.trees import (
    ROOT,
    Judgement,
    Node,
    Request,
    Step,
    Summary,
    SummaryBody,
    SummaryStatus,
    Tree,
    TreePolicy,
    request_of,
)
from katsura.domain.work import EXTERNAL, Fence, WorkItem, WorkKind
from katsura.memory.core import limits
from katsura.memory.core.compress import open_obligations
from katsura.memory.operations import ID_MAX, as_answer, committing, thread_if
from katsura.memory.summaries import Outside, Summaries, check_outside, checked, evidence_of_cover, with_outside
from katsura.state.trees import Cover, TreeRef, Written

CLAIMS_MAX: Final = 32
LEASE_S_DEFAULT: Final = 60
LEASE_S_MAX: Final = 3600
RETRY_S_MAX: Final = 86400
SECOND_TRIES_MAX: Final = 3
"""Summaries of one segment that workers are asked for; then its raw steps are all there is."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A task with what its worker needs: the `count` steps that end at `last` on the path of `branch`."""

    ref: TreeRef
    item: WorkItem
    tree: Tree
    branch: str
    last: NodeId
    count: int
    owed: tuple[str, ...]
    summary: Node | None


class Queue(Summaries):
    """The operations on tasks."""

    async def schedule_work(self, ref: TreeRef, kind: WorkKind, branch: str, summary: int, reason: str) -> WorkItem:
        """Ask for a summary or a verdict."""
        if kind is WorkKind.UNSPECIFIED or (kind is WorkKind.VALIDATE) != bool(summary):
            raise limits.refuse("kind", "say COMPRESS, or VALIDATE and which summary_id")
        limits.check_range(summary, "summary_id", 0, ID_MAX)
        limits.check_text(reason, "reason")
        return await self._trees.schedule(ref, kind, branch, summary, reason)

    async def claim_work(
        self, tenant: TenantId, tree: TreeRef | None, kind: WorkKind, worker: str, most: int, lease_s: int
    ) -> tuple[Claimed, ...]:
        """Claim tasks of one tree, or of any of the tenant's."""
        checked_name(worker, "worker_id")
        most = limits.check_range(most, "most", 0, CLAIMS_MAX) or 1
        lease_ms = _lease_ms(lease_s)
        if tree is None:
            found = await self._trees.claim_any(tenant, kind, worker, most, lease_ms)
        else:
            found = tuple((tree, item) for item in await self._trees.claim(tree, kind, worker, most, lease_ms))
        claimed: list[Claimed] = []
        for ref, item in found:
            with suppress(ConflictError, FailedPreconditionError, NotFoundError):  # moved since: the lease will end
                claimed.append(await self._claimed(ref, item))
        return tuple(claimed)

    async def renew_work(self, ref: TreeRef, fence: Fence, lease_s: int) -> WorkItem:
        """Hold a task longer."""
        return await self._trees.renew(ref, fence, _lease_ms(lease_s))

    async def give_back_work(self, ref: TreeRef, fence: Fence, reason: str, retry_s: int) -> WorkItem:
        """End a claim without a result."""
        limits.check_text(reason, "reason")
        limits.check_range(retry_s, "retry_after_s", 0, RETRY_S_MAX)
        return await self._trees.give_back(ref, fence, reason, retry_s * 1000)

    async def list_work(self, ref: TreeRef) -> tuple[WorkItem, ...]:
        """Every task of a tree."""
        return await self._trees.work(ref)

    async def complete_work(
        self, ref: TreeRef, request_id: str, fence: Fence, result: SummaryBody | Outside
    ) -> Written:
        """Write a worker's result, if its claim is the newest."""
        limits.check_text(request_id, "request_id")
        request = request_of(request_id, "complete", fence, result)
        if (done := await self._trees.replayed(ref, request)) is not None:
            return as_answer(Written, done)
        item = await self._trees.held(ref, fence)
        with committing("complete_work"):
            if isinstance(result, SummaryBody):
                written = await self._write_summary(ref, item, fence, result, request)
            else:
                written = await self._write_verdict(ref, item, fence, result, request)
        await self._after(ref, item, written)
        return written

    async def _write_summary(
        self, ref: TreeRef, item: WorkItem, fence: Fence, body: SummaryBody, request: Request
    ) -> Written:
        if item.kind is not WorkKind.COMPRESS:
            raise limits.refuse("summary_body", f"{item.work_id} asks for a verdict")
        limits.check_body(body, "summary_body")
        policy = await self._policy(ref, item.branch)
        cover = await self._trees.cover(ref, item.branch, None, item.last)
        if cover.base != item.base:
            raise ConflictError(
                f"the segment of {item.work_id!r} was summarised by somebody else meanwhile; claim again",
                reason=Reason.LEASE_LOST,
                metadata={"work_id": item.work_id},
            )
        nodes = await self._cover_nodes(ref, cover)
        evidence = await thread_if(
            len(nodes), lambda: evidence_of_cover(cover, nodes, _carrying(body, cover, nodes), item.worker)
        )
        judgement = await thread_if(len(nodes), lambda: checked(evidence, policy.validators, cover.base))
        return await self._trees.summarise(ref, cover, None, evidence.summary, judgement, request, fence)

    async def _write_verdict(
        self, ref: TreeRef, item: WorkItem, fence: Fence, verdict: Outside, request: Request
    ) -> Written:
        if item.kind is not WorkKind.VALIDATE:
            raise limits.refuse("verdict", f"{item.work_id} asks for a summary")
        check_outside(verdict)
        node = await self._summary(ref, item.branch, item.summary)
        assert node.judgement is not None, "summaries are judged"
        judgement = with_outside(node.judgement, verdict)
        return await self._trees.judge(ref, item.branch, node, judgement, request, fence)

    async def _after(self, ref: TreeRef, item: WorkItem, written: Written) -> None:
        policy = await self._policy(ref, item.branch)
        await self._roll_up_due(ref, item.branch, policy)
        if item.kind is WorkKind.VALIDATE and _wants_another(written.node, policy):
            judgement = written.node.judgement or Judgement()
            with suppress(FailedPreconditionError, NotFoundError):  # nothing is raw there any more
                await self._trees.schedule(ref, WorkKind.COMPRESS, item.branch, ROOT, judgement.note)

    async def _claimed(self, ref: TreeRef, item: WorkItem) -> Claimed:
        tree = (await self._trees.snapshot(ref, item.branch, 0, 0, "", False)).tree
        if item.kind is WorkKind.COMPRESS:
            cover = await self._trees.cover(ref, item.branch, None, item.last)
            before = cover.previous.body if cover.previous else None
            owed = before.body.open_obligations if isinstance(before, Summary) else ()
            return Claimed(ref, item, tree, item.branch, cover.last, cover.count, owed, None)
        node = await self._summary(ref, item.branch, item.summary)
        summary = node.body
        assert isinstance(summary, Summary), "tasks to validate are about summaries"
        previous = await self._previous_of(ref, node)
        owed = previous.open_obligations if previous else ()
        return Claimed(ref, item, tree, node.birth_branch, summary.last_covered, summary.covered_count, owed, node)


def _carrying(body: SummaryBody, cover: Cover, nodes: Sequence[Node]) -> SummaryBody:
    """`body` with every obligation that is still open: no model decides what is owed."""
    before = cover.previous.body if cover.previous else None
    owed = open_obligations(
        (n.body for n in nodes if isinstance(n.body, Step)), before.body if isinstance(before, Summary) else None
    )
    return replace(body, open_obligations=tuple(dict.fromkeys((*body.open_obligations, *owed))))


def _wants_another(node: Node, policy: TreePolicy) -> bool:
    failed = node.judgement is not None and node.judgement.status is SummaryStatus.FAILED
    made = node.body.version if isinstance(node.body, Summary) else 0
    return failed and policy.compressor == EXTERNAL and made < SECOND_TRIES_MAX


def _lease_ms(lease_s: int) -> int:
    return (limits.check_range(lease_s, "lease_s", 0, LEASE_S_MAX) or LEASE_S_DEFAULT) * 1000
