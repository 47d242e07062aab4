"""Collecting what nobody can reach, as the store sees it. `TreeStore` (trees.py) includes this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.retention import Retention
from katsura.state.contents import TreeRef

HOLDS_PER_CALL: Final = 8192
"""Branches times nodes that one call looks at, about: the store is held for milliseconds."""
LOOKS_MIN: Final = 8


@dataclass(frozen=True, slots=True)
class Collected:
    """What one call collected, and whether it came to the end."""

    branches: tuple[str, ...]
    nodes: tuple[NodeId, ...]
    done: bool


@dataclass(frozen=True, slots=True)
class Collectable:
    """What collecting would drop and erase: all branches; the nodes up to `last` with the bytes of their content; and
    whether that is the last one."""

    branches: tuple[str, ...]
    nodes: tuple[NodeId, ...]
    bytes: int
    last: NodeId
    done: bool


class TreeCollecting(Protocol):
    """The part of a tree store that forgets. Errors: see `katsura.state.trees`."""

    async def retentions(
        self, tenant: TenantId, page_size: int, page_token: str
    ) -> tuple[tuple[tuple[TreeId, Retention | None, bool], ...], str]:
        """The trees of a tenant that are in the store, newest first, with what each keeps and whether its steps refer
        to other trees; the token of the next page ("" at the end). A page costs about as much as reading one tree."""
        ...

    async def claim_collecting(self, ref: TreeRef, keep: Retention, worker: str, lease_ms: int) -> int:
        """The fencing token of a claim to collect, for `lease_ms`; 0 where there is nothing to collect, or another
        worker's claim has not ended."""
        ...

    async def collectable(self, ref: TreeRef, keep: Retention, looks: int, after: int) -> Collectable:
        """What `collect` would drop, and erase among the next `looks` nodes after the node `after`. Nothing is
        written, and `collect` goes on where it stopped."""
        ...

    async def collect(self, ref: TreeRef, keep: Retention, looks: int, token: int = 0) -> Collected:
        """Drop abandoned branches, and the content of nodes among the next `looks` that nobody can reach. It goes on
        where the last call stopped, also where that one died half-way. With the `token` of a claim it raises LEASE_LOST
        where that claim is no longer the newest; 0 collects for whoever asked."""
        ...
