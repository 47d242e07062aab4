"""Steps that refer to nodes of other trees, as the store sees them. `TreeStore` (trees.py) includes this.

A write reaches one tree. So nobody tells a tree what befell the nodes of others that its steps refer to: whoever does
upkeep asks for them (`looks`), reads how they are (`standing`), and says what it saw (`look`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from katsura.domain.ids import NodeId, TreeId
from katsura.domain.trees import StaleMark
from katsura.state.contents import TreeRef


@dataclass(frozen=True, slots=True)
class Look:
    """From a step to a node of another tree, and the marks of that node as they were last seen, as the step would carry
    them; None: not seen since the tree was imported."""

    step: NodeId
    tree_id: TreeId
    node_id: NodeId
    seen: tuple[StaleMark, ...] | None = ()

    @property
    def place(self) -> str:
        """Its name in the tree."""
        return f"{self.tree_id}\n{self.node_id:016}:{self.step:016}"


def look_of(place: str, seen: tuple[StaleMark, ...] | None) -> Look:
    """The way back from `Look.place`."""
    tree_id, _, ids = place.rpartition("\n")
    node_id, _, step = ids.partition(":")
    return Look(NodeId(int(step)), TreeId(tree_id), NodeId(int(node_id)), seen)


class TreeForeign(Protocol):
    """The part of a tree store that is about nodes of other trees. Errors: see `katsura.state.trees`."""

    async def looks(self, ref: TreeRef, cursor: str) -> tuple[tuple[Look, ...], str]:
        """A page of what leads from a tree to others, and where the next one begins ("": at both ends). What is there
        from the first page to the last is found at least once."""
        ...

    async def standing(self, ref: TreeRef, node_ids: Sequence[int]) -> tuple[tuple[StaleMark, ...] | None, ...] | None:
        """Why each of the first nodes (at least one, fewer than asked where the tree has many branches) no longer
        holds, with what is not marked in the tree itself: failed, on no branch that goes on. None for a
        node that is not there; no answer where the tree is cold, and it stays so. Raises TREE_NOT_FOUND."""
        ...

    async def look(self, ref: TreeRef, seen: Sequence[tuple[Look, tuple[StaleMark, ...]]]) -> tuple[NodeId, ...]:
        """Say what was seen: a step gets the marks that the look does not hold, and whatever leads to it with it. What
        somebody else has looked at meanwhile is left alone. The steps that are marked anew; where there is none,
        nothing is committed."""
        ...
