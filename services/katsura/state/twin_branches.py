"""The states of branches in memory: the twin of `branches_redis`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from katsura.domain.ids import NodeId
from katsura.domain.trees import EventKind, Request
from katsura.state.branches import BranchChange, Marked
from katsura.state.contents import TreeRef
from katsura.state.trees import refusal
from katsura.state.twin_doubt import doubt_left
from katsura.state.twin_tree import TwinForest, entered, not_writable


class TwinBranches(TwinForest):
    """The part of the twin that is about the states of branches."""

    async def update_branch(
        self,
        ref: TreeRef,
        branch: str,
        expected_head: int | None,
        change: BranchChange,
        request: Request,
        dry_run: bool = False,
    ) -> Marked:
        """Change a branch, or with `dry_run` tell what it would be."""
        state = self._state(ref)

        def write() -> Marked:
            found = state.branch(branch)
            if found.held_by:
                raise not_writable(ref, found)
            state.compare(state.guard(found, request.lease_token), expected_head)
            new = entered(found, change.state or found.state, self._tick())
            new = replace(
                new,
                label=found.label if change.label is None else change.label,
                note=found.note if change.note is None else change.note,
            )
            depth = state.depth(new.fork_node)
            effects = tuple(state.standing_effects(new, depth, new.name)) if new.left else ()
            if dry_run:
                return Marked(new, state.tree.revision, effects)
            state.branches[new.name] = new
            if new.left and not found.left:
                doubt_left(state, new.head, 0)
            return Marked(new, state.commit(EventKind.BRANCH_UPDATED, new.name, ()).revision, effects)

        return state.once(request, write)

    async def path_tokens(self, ref: TreeRef, heads: Sequence[NodeId]) -> tuple[int, ...]:
        """Tokens from the root up to each of these steps."""
        state = self._state(ref)
        for head in heads:
            if head and head not in state.nodes:
                raise refusal(ref, "NODE_NOT_FOUND", str(head))
        return tuple(map(state.path_tokens, heads))
