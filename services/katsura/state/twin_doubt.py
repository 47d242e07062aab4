"""What rests on what in one tree in memory, and what is stale: the twin of functions/memory_1_tree_references.lua."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from katsura.domain.ids import NodeId, TreeId
from katsura.domain.trees import (
    ROOT,
    Reference,
    StaleMark,
    StaleReason,
    StaleStep,
    Step,
    Summary,
    SummaryStatus,
)
from katsura.state.foreign import Look
from katsura.state.references import MARKS_MAX, STALE_MAX
from katsura.state.trees import refusal

if TYPE_CHECKING:
    from katsura.state.twin_tree import TwinTree

SHOWN_BY_ITSELF: Final = (StaleReason.FAILED,)
"""What a node says of itself, so that only those that lead to it are marked."""


@dataclass(slots=True)
class Doubts:
    """References and marks of one tree."""

    references: dict[int, tuple[Reference, ...]] = field(default_factory=dict)
    dependents: dict[int, set[NodeId]] = field(default_factory=dict)
    crossed: set[int] = field(default_factory=set)
    """Nodes to which a step on another path refers."""
    marks: dict[int, tuple[StaleMark, ...]] = field(default_factory=dict)
    looked: dict[str, tuple[StaleMark, ...] | None] = field(default_factory=dict)
    """By `Look.place`: marks of a node of another tree as they were last seen."""

    def mark(self, node_id: int, new: StaleMark) -> bool:
        """Whether the node was not marked so before."""
        before = self.marks.get(node_id, ())
        after = tuple(sorted({*before, new}))[:MARKS_MAX]
        if after != before:
            self.marks[node_id] = after
        return after != before

    def spread(self, node_id: int, new: StaleMark) -> None:
        """Mark everything that leads to a node."""
        found = [node_id]
        for at in found:
            for dependent in sorted(self.dependents.get(at, ())):
                if dependent != new.seen_from and self.mark(dependent, new):
                    found.append(dependent)

    def doubt(self, node_id: int, reason: StaleReason, seen_from: NodeId = ROOT) -> None:
        """Something befell a node: whatever leads to it is stale."""
        new = StaleMark(seen_from, NodeId(node_id), reason)
        if reason not in SHOWN_BY_ITSELF:
            self.mark(node_id, new)
        self.spread(node_id, new)


def doubt_left(state: TwinTree, head: NodeId, depth: int) -> None:
    """The part of a path above `depth` was left behind: what other paths took from it is in doubt."""
    heads = [branch.head for branch in state.branches.values() if not branch.left]
    for node_id in sorted(state.doubts.crossed):
        at = state.depth(node_id)
        left = at > depth and state.climb(head, at) == node_id
        if left and all(state.climb(other, at) != node_id for other in heads):
            state.doubts.doubt(node_id, StaleReason.ABANDONED)


def refer(state: TwinTree, node_id: NodeId, new: Sequence[Reference], *, spread: bool = True) -> None:
    """Take down references of a step; where one leads to is stale already, so is the step."""
    doubts = state.doubts
    doubts.references[node_id] = (*doubts.references.get(node_id, ()), *new)
    for other in (reference for reference in new if reference.tree_id):
        look = Look(node_id, TreeId(other.tree_id), other.node_id)
        doubts.looked[look.place] = () if spread else None
    for to in (reference.node_id for reference in new if not reference.tree_id):
        doubts.dependents.setdefault(to, set()).add(node_id)
        found = state.nodes[to]
        if isinstance(found.body, Step) and state.climb(node_id, found.depth) != to:
            doubts.crossed.add(to)
        marks = doubts.marks.get(to, ())
        if found.judgement is not None and found.judgement.status is SummaryStatus.FAILED:
            marks = (*marks, StaleMark(ROOT, to, StaleReason.FAILED))
        for seen in marks if spread else ():
            if doubts.mark(node_id, seen):
                doubts.spread(node_id, seen)


def check_references(state: TwinTree, node_id: int, new: Sequence[Reference], index: int | None = None) -> None:
    """Refuse references of a step (0: one that is about to be made) that may not be taken down."""
    place = () if index is None else (str(index),)
    for reference in new:
        if reference.tree_id:
            continue
        found = state.nodes.get(reference.node_id)
        if found is None:
            raise refusal(state.ref, "NODE_NOT_FOUND", str(reference.node_id), *place)
        if not isinstance(found.body, Step | Summary) or (node_id and reference.node_id >= node_id):
            raise refusal(state.ref, "BAD_REFERENCE", str(reference.node_id), *place)


def seen_marks(state: TwinTree, node_id: int, head: int | None = None) -> tuple[StaleMark, ...]:
    """Marks of a node that are seen from the path which ends at `head` (None: all)."""
    marks = state.doubts.marks.get(node_id, ())
    return tuple(m for m in marks if head is None or state.climb(head, state.depth(m.seen_from)) == m.seen_from)


def stale_on(state: TwinTree, head: int) -> tuple[StaleStep, ...]:
    """Stale steps on the path that ends at `head`, newest first."""
    found = []
    for node_id in sorted(state.doubts.marks, reverse=True):
        depth = state.depth(node_id)
        if isinstance(state.nodes[node_id].body, Step) and state.climb(head, depth) == node_id:
            for seen in seen_marks(state, node_id, head):
                found.append(StaleStep(NodeId(node_id), seen, max(depth, state.depth(seen.seen_from))))
    return tuple(found[:STALE_MAX])
