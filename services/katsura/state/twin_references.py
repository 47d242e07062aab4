"""References between nodes in memory: the twin of `references_redis`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.ids import NodeId
from katsura.domain.trees import EventKind, Node, Reference, Request, StaleReason, Step, Summary
from katsura.state.contents import TreeRef
from katsura.state.references import REFERENCES_MAX
from katsura.state.tree_records import stored_size
from katsura.state.trees import refusal
from katsura.state.twin_doubt import check_references, refer
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinReferences(TwinForest):
    """The part of the twin that is about what rests on what."""

    async def refer(
        self, ref: TreeRef, node_id: int, references: Sequence[Reference], request: Request
    ) -> tuple[Node, int]:
        """Add references to a step."""
        state = self._state(ref)

        def write() -> int:
            node = _step(state, node_id)
            there = state.doubts.references.get(node_id, ())
            known = {replace(reference, declared=False) for reference in there}
            new = [reference for reference in dict.fromkeys(references) if reference not in known]
            check_references(state, node_id, new)
            if len(there) + len(new) > REFERENCES_MAX:
                raise refusal(ref, "TOO_MANY", "references", str(REFERENCES_MAX))
            refer(state, node.node_id, new)
            return state.commit(EventKind.REFERRED, node.birth_branch, (node.node_id,)).revision

        revision = state.once(request, write)
        return state.shown(node_id), revision

    async def unrefer(
        self, ref: TreeRef, node_id: int, to_node_ids: Sequence[int], request: Request
    ) -> tuple[Node, int]:
        """Take references away that the step did not declare."""
        state = self._state(ref)

        def write() -> int:
            node, doubts = _step(state, node_id), state.doubts
            there = doubts.references.get(node_id, ())
            kept = tuple(r for r in there if r.declared or r.tree_id or r.node_id not in to_node_ids)
            for to in {r.node_id for r in there if not r.tree_id} - {r.node_id for r in kept if not r.tree_id}:
                doubts.dependents[to].discard(node.node_id)
            doubts.references[node_id] = kept
            return state.commit(EventKind.REFERRED, node.birth_branch, (node.node_id,)).revision

        revision = state.once(request, write)
        return state.shown(node_id), revision

    async def invalidate(self, ref: TreeRef, node_ids: Sequence[int], holds: bool, request: Request) -> int:
        """Mark nodes, and what leads to them, as stale, or take their marks away."""
        state = self._state(ref)

        def write() -> int:
            for i, node_id in enumerate(node_ids):
                if node_id not in state.nodes:
                    raise refusal(ref, "NODE_NOT_FOUND", str(node_id), str(i))
                if not isinstance(state.nodes[node_id].body, Step | Summary):
                    raise refusal(ref, "BAD_REFERENCE", str(node_id))
            for node_id in node_ids:
                if holds:
                    state.doubts.marks.pop(node_id, None)
                else:
                    state.doubts.doubt(node_id, StaleReason.INVALIDATED)
            return state.commit(EventKind.INVALIDATED, "", tuple(map(NodeId, node_ids))).revision

        return state.once(request, write)

    async def dependents(
        self, ref: TreeRef, node_id: int, after: int, page_size: int, bytes_max: int
    ) -> tuple[tuple[Node, ...], NodeId]:
        """Steps that refer to a node, oldest first."""
        state = self._state(ref)
        if node_id not in state.nodes:
            raise refusal(ref, "NODE_NOT_FOUND", str(node_id))
        taken: list[Node] = []
        for from_node in sorted(n for n in state.doubts.dependents.get(node_id, ()) if n > after):
            node = state.shown(from_node)
            bytes_max -= stored_size(node)
            if len(taken) == page_size or (bytes_max < 0 and taken):
                return tuple(taken), taken[-1].node_id
            taken.append(node)
        return tuple(taken), NodeId(0)


def _step(state: TwinTree, node_id: int) -> Node:
    node = state.nodes.get(node_id)
    if node is None:
        raise refusal(state.ref, "NODE_NOT_FOUND", str(node_id))
    if not isinstance(node.body, Step):
        raise refusal(state.ref, "BAD_REFERENCE", str(node_id))
    return node
