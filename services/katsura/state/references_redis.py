"""References between nodes in Valkey or Redis (functions/memory_9_references.lua)."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Reference, Request
from katsura.state.contents import TreeRef
from katsura.state.references import REFERENCES_MAX
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_records import references_json
from katsura.state.tree_replies import stored_node


class RedisReferences(TreeCalls):
    """The part of the store that is about what rests on what."""

    async def refer(
        self, ref: TreeRef, node_id: int, references: Sequence[Reference], request: Request
    ) -> tuple[Node, int]:
        """Add references to a step."""
        said = await self._write(ref, "refer", request, node_id, references_json(references), REFERENCES_MAX)
        return await self._node(ref, node_id), said["revision"]

    async def unrefer(
        self, ref: TreeRef, node_id: int, to_node_ids: Sequence[int], request: Request
    ) -> tuple[Node, int]:
        """Take references away that the step did not declare."""
        said = await self._write(ref, "unrefer", request, node_id, *to_node_ids)
        return await self._node(ref, node_id), said["revision"]

    async def invalidate(self, ref: TreeRef, node_ids: Sequence[int], holds: bool, request: Request) -> int:
        """Mark nodes, and what leads to them, as stale, or take their marks away."""
        revision: int = (await self._write(ref, "invalidate", request, int(holds), *node_ids))["revision"]
        return revision

    async def dependents(
        self, ref: TreeRef, node_id: int, after: int, page_size: int, bytes_max: int
    ) -> tuple[tuple[Node, ...], NodeId]:
        """Steps that refer to a node, oldest first."""
        answer = await self._call(ref, "dependents", node_id, after, page_size, bytes_max, read_only=True)
        return tuple(stored_node(node) for node in answer[2:]), NodeId(answer[1])

    async def _node(self, ref: TreeRef, node_id: int) -> Node:
        answer = await self._call(ref, "nodes", NO_LIMIT, node_id, read_only=True)
        return stored_node(answer[1])
