"""Collecting what nobody can reach, as the store sees it. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from katsura.domain.ids import NodeId
from katsura.state.contents import TreeRef

HOLDS_PER_CALL: Final = 8192
"""Branches times nodes that one call looks at, about: the store is held for milliseconds."""
LOOKS_MIN: Final = 8


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays although nobody goes on from it: the newest abandoned branches, and the newest revisions."""

    abandoned: int
    revisions: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What one call collected, and whether it came to the end."""

    branches: tuple[str, ...]
    nodes: tuple[NodeId, ...]
    done: bool


class TreeCollecting(Protocol):
    """The part of a tree store that forgets. Errors: see `katsura.state.trees`."""

    async def collect(self, ref: TreeRef, keep: Retention, looks: int) -> Collected:
        """Drop abandoned branches, and the content of nodes among the next `looks` that nobody can reach. It goes on
        where the last call stopped, also where that one died half-way."""
        ...
