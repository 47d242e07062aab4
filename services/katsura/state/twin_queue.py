"""Tasks of trees in memory: the twin of `queue_redis`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from katsura.domain.ids import NodeId, TenantId
from katsura.domain.trees import BranchState, Node, SummaryStatus
from katsura.domain.work import ATTEMPTS_MAX, Fence, WorkItem, WorkKind, work_id
from katsura.state.contents import TreeRef
from katsura.state.queue import SEGMENT_STEPS_MAX
from katsura.state.trees import Written, refusal
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinQueue(TwinForest):
    """The part of the twin that keeps tasks."""

    async def schedule(self, ref: TreeRef, kind: WorkKind, branch: str, summary: int, reason: str) -> WorkItem:
        """Ask for a task."""
        state = self._state(ref)
        name = state.branch(branch).name
        item = WorkItem(work_id(kind, name, summary), kind, name, NodeId(summary))
        if _needed(state, item) is None:
            raise refusal(ref, "NO_WORK", str(int(kind)), name, str(summary))
        return put_work(state, item, reason, self._tick())

    async def claim(self, ref: TreeRef, kind: WorkKind, worker: str, most: int, lease_ms: int) -> tuple[WorkItem, ...]:
        """Tasks of a tree that nobody holds."""
        state, now, found = self._state(ref), self._tick(), list[WorkItem]()
        waiting = sorted(state.work.values(), key=lambda item: (-item.kind, item.lease_end_ms or item.ready_ms))
        for item in waiting:
            due = not item.given_up and (item.lease_end_ms or item.ready_ms) <= now
            if not due or kind not in (WorkKind.UNSPECIFIED, item.kind) or len(found) == most:
                continue
            needed = _needed(state, item)
            if needed is None:
                del state.work[item.work_id]
            elif item.attempts >= ATTEMPTS_MAX:
                _release(state, item, f"the lease of {item.worker} ended", now, 0)
            else:
                state.claims += 1
                held = replace(
                    needed, attempts=item.attempts + 1, token=state.claims, worker=worker, lease_end_ms=now + lease_ms
                )
                state.work[item.work_id] = held
                found.append(held)
        return tuple(found)

    async def claim_any(
        self, tenant: TenantId, kind: WorkKind, worker: str, most: int, lease_ms: int
    ) -> tuple[tuple[TreeRef, WorkItem], ...]:
        """Tasks of a tenant's trees."""
        found: list[tuple[TreeRef, WorkItem]] = []
        for ref in [ref for ref in self._trees if ref.tenant == tenant]:
            found += [(ref, item) for item in await self.claim(ref, kind, worker, most - len(found), lease_ms)]
        return tuple(found)

    async def held(self, ref: TreeRef, fence: Fence) -> WorkItem:
        """The task, if this claim of it is the newest."""
        return _held(self._state(ref), fence)

    async def renew(self, ref: TreeRef, fence: Fence, lease_ms: int) -> WorkItem:
        """Hold a task longer."""
        state = self._state(ref)
        item = replace(_held(state, fence), lease_end_ms=self._tick() + lease_ms)
        state.work[item.work_id] = item
        return item

    async def give_back(self, ref: TreeRef, fence: Fence, reason: str, retry_ms: int) -> WorkItem:
        """End a claim without a result."""
        state = self._state(ref)
        return _release(state, _held(state, fence), reason, self._tick() + retry_ms, ATTEMPTS_MAX)

    async def work(self, ref: TreeRef) -> tuple[WorkItem, ...]:
        """Every task of a tree, by name."""
        return tuple(item for _, item in sorted(self._state(ref).work.items()))


def put_work(state: TwinTree, item: WorkItem, reason: str, now: int) -> WorkItem:
    """Make a task, or take one up again that was given up; one that is there already stays as it is."""
    known = state.work.get(item.work_id)
    if known is not None and not known.given_up:
        return known
    made = replace(item, base=NodeId(0), last=NodeId(0), ready_ms=now, create_ms=now, reason=reason)
    state.work[item.work_id] = made
    return made


def ask_for_verdict(state: TwinTree, node: Node, branch: str, now: int) -> None:
    """Make the task that a summary waits for."""
    name = state.branch(branch).name
    put_work(
        state, WorkItem(work_id(WorkKind.VALIDATE, name, node.node_id), WorkKind.VALIDATE, name, node.node_id), "", now
    )


def fenced(state: TwinTree, fence: Fence | None, write: Callable[[], Written]) -> Written:
    """A write that stands only while its claim is the newest, and ends the task unless a summary it wrote FAILED."""
    if fence is None:
        return write()
    item = _held(state, fence)
    written = write()
    judgement = written.node.judgement
    failed = judgement is not None and judgement.status is SummaryStatus.FAILED
    if not (failed and item.kind is WorkKind.COMPRESS):
        del state.work[item.work_id]
    return written


def _held(state: TwinTree, fence: Fence) -> WorkItem:
    item = state.work.get(fence.work_id)
    if item is None:
        raise refusal(state.ref, "LEASE_LOST", fence.work_id, "done")
    if (item.token, item.worker) != (fence.token, fence.worker):
        raise refusal(state.ref, "LEASE_LOST", fence.work_id, "taken")
    return item


def _release(state: TwinTree, item: WorkItem, reason: str, ready: int, most: int) -> WorkItem:
    back = replace(item, worker="", lease_end_ms=0, ready_ms=ready, reason=reason, given_up=item.attempts >= most)
    state.work[item.work_id] = back
    return back


def _needed(state: TwinTree, item: WorkItem) -> WorkItem | None:
    """The task with its segment, None where it makes no sense any more."""
    if item.kind is WorkKind.VALIDATE:
        node = state.nodes.get(item.summary)
        judgement = node.judgement if node else None
        return item if judgement is not None and judgement.status is SummaryStatus.PENDING else None
    branch = state.branches.get(item.branch)
    if branch is None or branch.state is not BranchState.ACTIVE:
        return None
    standing = state.standing(branch)
    base = state.span(standing.node_id)[1] if standing else NodeId(0)
    depth = state.depth(base)
    if state.depth(branch.head) <= depth:
        return None
    return replace(item, base=base, last=state.climb(branch.head, depth + SEGMENT_STEPS_MAX))
