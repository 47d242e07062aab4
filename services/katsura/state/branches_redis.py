"""The states of branches in Valkey or Redis (functions/memory_4_branches.lua)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from katsura.domain.ids import NodeId
from katsura.domain.trees import Request, StandingEffect
from katsura.state.branches import BranchChange, Marked
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_replies import branch_of, effects_of


class RedisBranches(TreeCalls):
    """The part of the store that is about the states of branches."""

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
        said: list[Arg] = [branch, -1 if expected_head is None else expected_head, int(change.state)]
        said += [int(change.label is not None), change.label or "", int(change.note is not None), change.note or ""]
        found = await self._write(ref, "update_branch", request, *said, int(dry_run))
        effects: list[StandingEffect] = []
        if ids := list(found["standing"]):
            _, *units = await self._call(ref, "nodes", NO_LIMIT, *ids, read_only=True)
            effects += chain.from_iterable(effects_of(unit[0], unit[2]) for unit in units)
        return Marked(branch_of(found["branch"]), found["revision"], tuple(effects))

    async def path_tokens(self, ref: TreeRef, heads: Sequence[NodeId]) -> tuple[int, ...]:
        """Tokens from the root up to each of these steps."""
        return tuple((await self._call(ref, "path_tokens", *heads, read_only=True))[1:])
