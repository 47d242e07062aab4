"""Steps that wait for a tool or an approval, and what ends their waiting."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, BranchState, Node, Resolution, Step, WaitKind, request_of
from katsura.memory.core import limits
from katsura.memory.core.compress import CLOSES, OPENS
from katsura.memory.core.tokens import estimate_step
from katsura.memory.operations import ID_MAX, Operations, Write, committing
from katsura.state.trees import NewStep, TreeRef, refusal


class Waits(Operations):
    """The operations on steps that wait."""

    async def resume_step(
        self, write: Write, node_id: int, resolution: Resolution, said: Step | None
    ) -> tuple[Node, Branch]:
        """Append a step that ends the waiting of another; it, and the branch afterwards."""
        write = write.checked()
        limits.check_range(node_id, "node_id", 1, ID_MAX)
        if resolution is Resolution.UNSPECIFIED:
            raise limits.refuse("resolution", "say how it went: DONE or REFUSED")
        (node,) = await self._trees.nodes(write.tree, [node_id], limits.ANSWER_BYTES_MAX)
        if not isinstance(node.body, Step) or node.body.wait is None:
            raise refusal(write.tree, "NOT_WAITING", str(node_id))
        if node.body.wait.kind is WaitKind.SUBGOAL:
            raise limits.refuse("node_id", f"node {node_id} begins a subgoal; EndSubgoal ends it")
        step = limits.complete_step(said or _plain(node.body.wait.kind, resolution), "step")
        owed = node.body.attributes.get(OPENS, "")
        attributes = {**step.attributes, CLOSES: owed} if owed else step.attributes
        step = replace(step, resolves=NodeId(node_id), resolution=resolution, attributes=attributes)
        fields = (write.branch, write.expected_head, write.unconditional, node_id, resolution, said)
        request = write.under(request_of(write.request_id, "resume", *fields))
        new = [NewStep(step, estimate_step(step))]
        with committing("resume"):
            grown = await self._trees.grow(write.tree, write.branch, write.expected_head, new, False, request)
        (made,) = await self._trees.nodes(write.tree, grown.node_ids, limits.ANSWER_BYTES_MAX)
        return made, grown.branch

    async def waiting(self, ref: TreeRef, branch: str) -> tuple[tuple[str, Node], ...]:
        """What waits on a branch, or ("") on every one that is ACTIVE: branch and step, oldest first on each."""
        names = [branch]
        if not branch:
            _, branches = await self._trees.read(ref)
            names = [b.name for b in branches if b.state is BranchState.ACTIVE]
        found = [await self._trees.waiting(ref, name) for name in names]
        return tuple((at.name, node) for at, nodes in found for node in nodes)


def _plain(kind: WaitKind, resolution: Resolution) -> Step:
    """What is said where only the outcome is known."""
    if kind is WaitKind.APPROVAL:
        return Step("approved" if resolution is Resolution.DONE else "refused", role="user")
    return Step("done" if resolution is Resolution.DONE else "failed", role="tool")
