"""Slots of a branch: named values with history, as the store keeps them. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, Node, Request, Slot
from katsura.state.contents import TreeRef

KEYS_MAX: Final = 256
"""Keys that one path has ever set."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """The slots of a branch.

    Attributes:
        head, head_hash: the last write on its path, of any key.
        last: the last write of each key, oldest first, those included that unset theirs.
    """

    branch: Branch
    head: NodeId
    head_hash: bytes
    last: tuple[Node, ...]


class TreeSlots(Protocol):
    """The part of a tree store that is about slots. Errors: see `katsura.state.trees`."""

    async def slots(self, ref: TreeRef, branch: str, at: int = 0) -> SlotState:
        """The slots of a branch, or as they were after the write `at`."""
        ...

    async def slots_replayed(self, ref: TreeRef, request: Request) -> tuple[tuple[Node, ...], int] | None:
        """What `set_slots` answered to this request before; it passes the barrier again."""
        ...

    async def set_slots(
        self, ref: TreeRef, state: SlotState, writes: Sequence[tuple[Slot, int]], request: Request
    ) -> tuple[tuple[Node, ...], int]:
        """Append writes (and their tokens) to the branch's chain; the nodes, and the tree's revision. Raises HEAD_MOVED
        where branch or slots are no longer as `state` saw them."""
        ...

    async def slot_history(self, ref: TreeRef, branch: str, key: str, most: int) -> tuple[Node, ...]:
        """Writes of one key on the branch's path, newest first."""
        ...
