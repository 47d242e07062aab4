"""Branches as callers see and mark them: listing them, and saying in which state they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

from katsura.domain.trees import Branch, BranchState, Request, request_of
from katsura.memory.core import limits
from katsura.memory.operations import ID_MAX, Operations, Write, committing
from katsura.state.branches import BranchChange, Marked
from katsura.state.trees import TreeRef

_LABEL_BYTES_MAX: Final = 128
_NOTE_BYTES_MAX: Final = 1024
"""Both travel with every read and write of the branch."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of branches, the tokens of each one's path, and the token of the next page ("" at the end)."""

    branches: tuple[Branch, ...]
    path_tokens: tuple[int, ...]
    next_page: str


class Branches(Operations):
    """The operations on branches as a whole."""

    async def update_branch(self, write: Write, change: BranchChange, dry_run: bool = False) -> Marked:
        """Say in which state a branch is, what it is called and what is said of it; with `dry_run` tell what would be.
        Any head will do where `write` names none."""
        if change == BranchChange():
            raise limits.refuse("state", "nothing is named that should change")
        limits.check_text(write.request_id, "request_id")
        limits.check_text(change.label or "", "label", _LABEL_BYTES_MAX)
        limits.check_text(change.note or "", "note", _NOTE_BYTES_MAX)
        write = write.checked()
        said = request_of(write.request_id, "update_branch", write.branch, write.expected_head, change)
        request = write.under(Request("", "") if dry_run else said)
        with nullcontext() if dry_run else committing("update_branch"):
            return await self._trees.update_branch(
                write.tree, write.branch, write.expected_head, change, request, dry_run
            )

    async def list_branches(self, ref: TreeRef, states: Sequence[BranchState], size: int, token: str) -> Listed:
        """Branches, newest first."""
        if token and not (token.isdecimal() and len(token) <= len(str(ID_MAX))):
            raise limits.refuse("page_token", "it is not one of ours; send next_page_token as it came")
        _, branches = await self._trees.read(ref)
        size, below = limits.page_size(size), int(token or ID_MAX)
        wanted = [b for b in reversed(branches) if b.order < below and (not states or b.state in states)]
        page = tuple(wanted[:size])
        tokens = await self._trees.path_tokens(ref, [branch.head for branch in page])
        return Listed(page, tokens, str(page[-1].order) if len(wanted) > size else "")
