"""A tree that was forked off another one, seen as one: what stands before its first step, and what follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from katsura.domain.trees import ROOT, Origin, Rest, Shown, Slot, Snapshot, StaleStep


def joined(before: Snapshot, after: Snapshot, origin: Origin) -> Snapshot:
    """The snapshot of a tree with what it was forked off before it, as if it were one path.

    What lies before shows only where everything after it does, so that there is never a gap. A slot that the tree set
    itself hides the one before.
    """
    steps, summaries = _moved(after.steps, origin), _moved(after.summaries, origin)
    own = {shown.node.body.key for shown in after.slots if isinstance(shown.node.body, Slot)}
    whole = after.steps_rest.node_id == ROOT
    kept = after.summaries_rest.node_id == ROOT
    earlier = (s for s in before.slots if isinstance(s.node.body, Slot) and s.node.body.key not in own)
    stale = (StaleStep(s.node_id, s.mark, s.depth + origin.depth, s.tree_id) for s in after.stale)
    return replace(
        after,
        branch=replace(after.branch, depth=after.branch.depth + origin.depth),
        steps=(*_of(before.steps if whole else (), origin), *steps),
        summaries=(*_of(before.summaries if kept else (), origin), *summaries),
        hints=(*_of(before.hints, origin), *_moved(after.hints, origin)),
        steps_rest=before.steps_rest if whole else _added(after.steps_rest, origin.tokens),
        summaries_rest=before.summaries_rest if kept else after.summaries_rest,
        hints_rest=after.hints_rest if after.hints_rest.node_id else before.hints_rest,
        waiting=(*_of(before.waiting, origin), *_moved(after.waiting, origin)),
        slots=(*_of(earlier, origin), *_moved(after.slots, origin)),
        stale=(*stale, *(replace(s, tree_id=s.tree_id or origin.tree_id) for s in before.stale)),
    )


def _moved(parts: Iterable[Shown], origin: Origin) -> tuple[Shown, ...]:
    """Parts of the tree itself, further down by what stands before."""
    return tuple(
        replace(
            shown,
            node=replace(
                shown.node,
                depth=shown.node.depth + origin.depth,
                path_tokens=shown.node.path_tokens + origin.tokens,
            ),
        )
        for shown in parts
    )


def _of(parts: Iterable[Shown], origin: Origin) -> tuple[Shown, ...]:
    """Parts of the other tree, or of one before it."""
    return tuple(replace(shown, tree_id=shown.tree_id or origin.tree_id) for shown in parts)


def _added(rest: Rest, tokens: int) -> Rest:
    return Rest(rest.node_id, rest.tokens + tokens)
