"""References between nodes, as the store sees them. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Reference, Request
from katsura.state.contents import TreeRef

REFERENCES_MAX: Final = 64
"""References of one step."""
MARKS_MAX: Final = 16
"""Marks of one stale node: the first ones in order."""
STALE_MAX: Final = 64
"""Stale steps that a snapshot tells of."""


class TreeReferences(Protocol):
    """The part of a tree store that is about what rests on what. Errors: see `katsura.state.trees`; BAD_REFERENCE where
    one does not lead from a step to a step or summary made before it."""

    async def refer(
        self, ref: TreeRef, node_id: int, references: Sequence[Reference], request: Request
    ) -> tuple[Node, int]:
        """Add references to a step; the step, and the tree's revision. Raises RESOURCE_EXHAUSTED past their most."""
        ...

    async def unrefer(
        self, ref: TreeRef, node_id: int, to_node_ids: Sequence[int], request: Request
    ) -> tuple[Node, int]:
        """Take references away that the step did not declare; the step, and the tree's revision."""
        ...

    async def invalidate(self, ref: TreeRef, node_ids: Sequence[int], holds: bool, request: Request) -> int:
        """Mark nodes, and what leads to them, as stale (or, where they hold after all, take their marks away); the
        tree's revision."""
        ...

    async def dependents(
        self, ref: TreeRef, node_id: int, after: int, page_size: int, bytes_max: int
    ) -> tuple[tuple[Node, ...], NodeId]:
        """Steps made after `after` that refer to a node, oldest first, and where the next page begins (0: the end)."""
        ...
