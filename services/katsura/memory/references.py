"""What rests on what: references between steps, and saying what no longer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.errors import KatsuraError, NotFoundError
from katsura.domain.ids import NodeId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import Node, Reference, ReferenceKind, Step, Summary, request_of
from katsura.memory.core import limits
from katsura.memory.operations import ID_MAX, Operations, committing
from katsura.state.collecting import Collectable, Collected
from katsura.state.trees import TreeRef, refusal


class References(Operations):
    """The operations on references."""

    async def _lost(self, ref: TreeRef, steps: Sequence[Step]) -> KatsuraError | None:
        """Why steps may not refer to other trees as they do: what a step refers to was made before it, there as in its
        own tree, so that references never close a circle. Trees of other tenants are unknown."""
        for i, step in enumerate(steps):
            for reference in (r for r in step.references if r.tree_id):
                other = TreeRef(ref.tenant, TreeId(reference.tree_id))
                try:
                    (node,) = await self._trees.nodes(other, [reference.node_id], limits.ANSWER_BYTES_MAX)
                except NotFoundError as error:
                    return error
                if not isinstance(node.body, Step | Summary):
                    return refusal(other, "BAD_REFERENCE", str(node.node_id), str(i))
        return None

    async def add_references(
        self, ref: TreeRef, request_id: str, node_id: int, references: Sequence[Reference]
    ) -> tuple[Node, int]:
        """Let a step that is there refer to more; the step, and the tree's revision."""
        limits.check_text(request_id, "request_id")
        limits.check_range(node_id, "node_id", 1, ID_MAX)
        if not references:
            raise limits.refuse("references", "there is none; send at least one")
        limits.check_references(references, "references")
        for i, reference in enumerate(references):
            if reference.tree_id:
                raise limits.refuse(f"references[{i}].tree_id", "only a step itself refers to another tree, in Grow")
        complete = tuple(replace(r, kind=r.kind or ReferenceKind.DEPENDS_ON, declared=False) for r in references)
        request = request_of(request_id, "refer", node_id, complete)
        with committing("refer"):
            return await self._trees.refer(ref, node_id, complete, request)

    async def remove_references(
        self, ref: TreeRef, request_id: str, node_id: int, to_node_ids: Sequence[int]
    ) -> tuple[Node, int]:
        """Take references away that were added to a step; the step, and the tree's revision."""
        limits.check_text(request_id, "request_id")
        limits.check_range(node_id, "node_id", 1, ID_MAX)
        limits.check_ids(to_node_ids, "to_node_ids", limits.REFERENCES_MAX)
        request = request_of(request_id, "unrefer", node_id, tuple(to_node_ids))
        with committing("unrefer"):
            return await self._trees.unrefer(ref, node_id, to_node_ids, request)

    async def dependents(self, ref: TreeRef, node_id: int, after: int, size: int) -> tuple[tuple[Node, ...], NodeId]:
        """A page of the steps that refer to a node, and where the next one begins."""
        limits.check_range(node_id, "node_id", 1, ID_MAX)
        limits.check_range(after, "after_node", 0, ID_MAX)
        return await self._trees.dependents(ref, node_id, after, limits.page_size(size), limits.ANSWER_BYTES_MAX)

    async def invalidate(self, ref: TreeRef, request_id: str, node_ids: Sequence[int], holds: bool) -> int:
        """Say that nodes no longer hold, or that they hold after all; the tree's revision."""
        limits.check_text(request_id, "request_id")
        limits.check_ids(node_ids, "node_ids", limits.INVALIDATE_MAX)
        request = request_of(request_id, "invalidate", tuple(node_ids), holds)
        with committing("invalidate"):
            return await self._trees.invalidate(ref, node_ids, holds, request)

    async def collect_garbage(
        self, ref: TreeRef, keep_abandoned: int | None, keep_revisions: int | None, size: int
    ) -> Collected:
        """Forget what nobody can reach, from where the last call stopped; the tree's retention says the rest."""
        keep = await self._keep(ref, keep_abandoned, keep_revisions)
        with committing("collect"):
            return await self._trees.collect(ref, keep, limits.page_size(size))

    async def garbage(
        self, ref: TreeRef, keep_abandoned: int | None, keep_revisions: int | None, size: int, after: int
    ) -> Collectable:
        """What `collect_garbage` would forget among the nodes after `after`; nothing is written."""
        limits.check_range(after, "after_node", 0, ID_MAX)
        keep = await self._keep(ref, keep_abandoned, keep_revisions)
        return await self._trees.collectable(ref, keep, limits.page_size(size), after)

    async def _keep(self, ref: TreeRef, keep_abandoned: int | None, keep_revisions: int | None) -> Retention:
        if keep_abandoned is not None:
            limits.check_range(keep_abandoned, "keep_abandoned", 0, ID_MAX)
        if keep_revisions is not None:
            limits.check_range(keep_revisions, "keep_revisions", 1, ID_MAX)
        own = (await self._trees.read(ref))[0].policy.retention or Retention()
        return Retention(
            own.abandoned if keep_abandoned is None else keep_abandoned,
            own.revisions if keep_revisions is None else keep_revisions,
            own.abandoned_s if keep_abandoned is None else 0,
        )
