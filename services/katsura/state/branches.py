"""What callers say of a branch, as the store sees it. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, BranchState, Request, StandingEffect
from katsura.state.contents import TreeRef


@dataclass(frozen=True, slots=True)
class BranchChange:
    """What becomes of a branch; UNSPECIFIED and None keep what is there."""

    state: BranchState = BranchState.UNSPECIFIED
    label: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Marked:
    """A branch and its tree's revision. Of an ABANDONED one, what its steps did outside since it was forked, newest
    first, and what hints made on it tell of."""

    branch: Branch
    revision: int
    effects: tuple[StandingEffect, ...] = ()


class TreeBranches(Protocol):
    """The part of a tree store that is about the states of branches. Errors: see `katsura.state.trees`."""

    async def update_branch(
        self,
        ref: TreeRef,
        branch: str,
        expected_head: int | None,
        change: BranchChange,
        request: Request,
        dry_run: bool = False,
    ) -> Marked:
        """Change a branch. Leaving ACTIVE gives a lease on it back. With
        `dry_run` nothing is written. Raises BRANCH_NOT_WRITABLE where it keeps the place of another tree."""
        ...

    async def path_tokens(self, ref: TreeRef, heads: Sequence[NodeId]) -> tuple[int, ...]:
        """Tokens from the root up to each of these steps, by the default estimate."""
        ...
