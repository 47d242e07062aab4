"""What befell the nodes of other trees that a tree's steps refer to: looked after in upkeep, a bounded number of calls
a turn. Several processes may: what one has seen the other one leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from katsura.domain.errors import NotFoundError
from katsura.domain.ids import NodeId, TreeId
from katsura.domain.trees import ROOT, StaleMark, StaleReason
from katsura.state.foreign import Look
from katsura.state.references import MARKS_MAX
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_NODES_PER_CALL: Final = 256


class Lookout:
    """Looks after nodes of other trees, for the trees of all tenants."""

    def __init__(self, trees: TreeStore) -> None:
        self._trees = trees
        self._stopped_at: dict[TreeRef, str] = {}

    async def turn(self, ref: TreeRef, calls: int) -> int:
        """Look at what leads from one tree to others, in about so many calls, from where the last turn stopped; how
        many it took."""
        cursor, made, stale = self._stopped_at.pop(ref, ""), 0, 0
        try:
            while made < calls:
                looks, cursor = await self._trees.looks(ref, cursor)
                seen, asked = await self._seen(ref, looks)
                made += 1 + asked
                if changed := [(look, marks) for look, marks in seen if marks != look.seen]:
                    stale += len(await self._trees.look(ref, changed))
                if not cursor:
                    break
        except NotFoundError:
            return made  # dropped meanwhile
        if cursor:
            self._stopped_at[ref] = cursor
        if stale:
            _LOG.info("steps rest on what no longer holds in another tree", tree_id=ref.tree, steps=stale)
        return made

    async def _seen(self, ref: TreeRef, looks: Sequence[Look]) -> tuple[list[tuple[Look, tuple[StaleMark, ...]]], int]:
        """What was looked at with the marks of now, and the calls that it took. Left out is what is in a cold tree, and
        what is not there and never was."""
        seen: list[tuple[Look, tuple[StaleMark, ...]]] = []
        calls = 0
        for tree_id, group in groupby(sorted(looks, key=_order), key=lambda look: look.tree_id):
            left, other = list(group), TreeRef(ref.tenant, tree_id)
            while left:
                part, calls = left[:_NODES_PER_CALL], calls + 1
                try:
                    found = await self._trees.standing(other, [look.node_id for look in part])
                except NotFoundError:
                    found = (None,) * len(part)
                if found is None:
                    break
                for look, marks in zip(part, found, strict=False):
                    if marks is not None:
                        seen.append((look, carried(ref.tree, tree_id, marks)))
                    elif look.seen is not None:
                        gone = StaleMark(ROOT, look.node_id, StaleReason.GONE)
                        seen.append((look, carried(ref.tree, tree_id, (gone,))))
                left = left[len(found) :]
        return seen, calls


def carried(own: TreeId, other: TreeId, marks: Sequence[StaleMark]) -> tuple[StaleMark, ...]:
    """Marks of a node of the tree `other` as a step of the tree `own` carries them: wherever it is seen from, since a
    reference names no branch, and by causes of its own where they led there and back."""
    causes = ((mark, mark.tree_id or other) for mark in marks)
    new = {replace(mark, seen_from=ROOT, tree_id="" if tree == own else tree) for mark, tree in causes}
    return tuple(sorted(new))[:MARKS_MAX]


def _order(look: Look) -> tuple[TreeId, NodeId, NodeId]:
    return look.tree_id, look.node_id, look.step
