"""Cold trees in memory: the twin of `cold_redis`, whose objects are the trees themselves."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.trees import EventKind, Tree
from katsura.state.contents import TreeRef
from katsura.state.twin_tree import TwinForest, TwinTree


class TwinCold(TwinForest):
    """The part of the twin that moves trees out and back."""

    async def freeze(self, ref: TreeRef) -> bool:
        """Move a tree out."""
        state = self._state(ref)
        leased = any(branch.lease_end_ms > self._tick() for branch in state.branches.values())
        if state.tree.policy.ttl_s or state.work or leased:
            return False
        self._frozen[ref] = self._trees.pop(ref)
        return True

    def _warm(self, ref: TreeRef) -> None:
        """Bring a tree back where it is cold."""
        state = self._frozen.pop(ref, None)
        if state is not None:
            state.tokens.clear()
            state.replays.clear()
            state.events.clear()
            self._trees[ref] = state
            state.commit(EventKind.TREE_UPDATED, state.tree.default_branch, ())

    def _state(self, ref: TreeRef) -> TwinTree:
        self._warm(ref)
        return super()._state(ref)

    def _everything(self) -> dict[TreeRef, Tree]:
        """Every tree as it is shown in a list."""
        cold = {ref: replace(state.shown_tree, stale_count=0, cold=True) for ref, state in self._frozen.items()}
        return {**{ref: state.shown_tree for ref, state in self._trees.items()}, **cold}
