"""Comparing and merging branches, as the store sees it. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from katsura.domain.ids import NodeId
from katsura.domain.trees import Branch, Request, Slot, Step
from katsura.state.contents import TreeRef


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two branches parted.

    Attributes:
        common, depth: the last step that both have.
        slots: the last slot write that both have.
        head_hash: content hash of `branch`'s head.
    """

    branch: Branch
    other: Branch
    common: NodeId
    depth: int
    slots: NodeId
    head_hash: bytes


@dataclass(frozen=True, slots=True)
class Merged:
    """Ids of the steps and slots that a Merge made, the keys that both branches had changed, the branch afterwards, the
    last step that both had before, and the tree's revision."""

    steps: tuple[NodeId, ...]
    slots: tuple[NodeId, ...]
    conflicts: tuple[str, ...]
    branch: Branch
    common: NodeId
    revision: int


@dataclass(frozen=True, slots=True)
class Merging:
    """What a Merge writes, and what it was planned on. Tokens stand beside what they are of. With `closes` the same
    commit makes the source MERGED."""

    parting: Parting
    slot_head: NodeId
    slot_hash: bytes
    source_slot_head: NodeId
    steps: Sequence[tuple[Step, int]]
    slots: Sequence[tuple[Slot, int]]
    conflicts: tuple[str, ...] = ()
    closes: bool = False


class TreeMerging(Protocol):
    """The part of a tree store that is about two branches. Errors: see `katsura.state.trees`."""

    async def parting(self, ref: TreeRef, branch: str, other: str) -> Parting:
        """Where two branches parted, in logarithmic time."""
        ...

    async def merge_replayed(self, ref: TreeRef, request: Request) -> Merged | None:
        """What `merge` answered to this request before; it passes the barrier again."""
        ...

    async def merge(self, ref: TreeRef, merging: Merging, request: Request) -> Merged:
        """Append steps and slots to the branch in one commit. Raises HEAD_MOVED where either branch, or the slots of
        either, are no longer as `merging` saw them; LEASE_HELD where somebody holds a source that closes."""
        ...
