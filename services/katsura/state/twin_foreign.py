"""Steps that refer to nodes of other trees, in memory: the twin of `foreign_redis`."""

from __future__ import annotations

from collections.abc import Sequence

from katsura.domain.ids import NodeId
from katsura.domain.trees import ROOT, EventKind, StaleMark, StaleReason, Step, Summary, SummaryStatus
from katsura.state.contents import TreeRef
from katsura.state.foreign import Look, look_of
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinForeign(TwinForest):
    """The part of the twin that is about nodes of other trees."""

    async def looks(self, ref: TreeRef, cursor: str) -> tuple[tuple[Look, ...], str]:
        """What leads from a tree to others."""
        looked = self._state(ref).doubts.looked
        return tuple(look_of(place, seen) for place, seen in looked.items()), ""

    async def standing(self, ref: TreeRef, node_ids: Sequence[int]) -> tuple[tuple[StaleMark, ...] | None, ...] | None:
        """Why nodes no longer hold."""
        if ref in self._frozen:
            return None
        state = self._state(ref)
        return tuple(_standing(state, NodeId(node_id)) for node_id in node_ids)

    async def look(self, ref: TreeRef, seen: Sequence[tuple[Look, tuple[StaleMark, ...]]]) -> tuple[NodeId, ...]:
        """Say what was seen."""
        state, ids = self._state(ref), dict[NodeId, None]()
        for look, marks in seen:
            if state.doubts.looked.get(look.place, ...) != look.seen:
                continue
            state.doubts.looked[look.place] = marks
            for new in marks:
                if new not in (look.seen or ()) and state.doubts.mark(look.step, new):
                    state.doubts.spread(look.step, new)
                    ids[look.step] = None
        if ids:
            state.commit(EventKind.STALE, "", tuple(ids))
        return tuple(ids)


def _standing(state: TwinTree, node_id: NodeId) -> tuple[StaleMark, ...] | None:
    node = state.nodes.get(node_id)
    if node is None or not isinstance(node.body, Step | Summary):
        return None
    befell = []
    if node.judgement is not None and node.judgement.status is SummaryStatus.FAILED:
        befell.append(StaleReason.FAILED)
    heads = [branch.head for branch in state.branches.values() if not branch.left]
    if isinstance(node.body, Step) and all(state.climb(head, node.depth) != node_id for head in heads):
        befell.append(StaleReason.ABANDONED)
    return (*state.doubts.marks.get(node_id, ()), *(StaleMark(ROOT, node_id, reason) for reason in befell))
