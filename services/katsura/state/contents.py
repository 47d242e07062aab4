"""What a memory tree holds beside its paths: its own texts, bytes put beside nodes, listing, finding, erasing.

`TreeStore` (trees.py) is this and the operations on branches. `RedisContents` and `TwinContents` carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.retention import Retention
from katsura.domain.trees import LATE, Attachment, Node, Request, Tree

EXTRAS_MAX: Final = 1024
"""Attachments beside one node."""
EXTRAS_BYTES_MAX: Final = 768 * 1024
"""Bytes of them, so that a node with everything fits an answer."""
PINS_MAX: Final = 64
LABELS_MAX: Final = 64
LOOKS_MAX: Final = 2048
"""Nodes that one call of `list_nodes` or `search` looks at: the store is held for milliseconds, whatever is asked."""


@dataclass(frozen=True, slots=True)
class TreeRef:
    """A tree of a tenant."""

    tenant: TenantId
    tree: TreeId


@dataclass(frozen=True, slots=True)
class TreeChange:
    """What changes about a tree; None and "" keep what is there. Removals go before additions."""

    goal: str | None = None
    add_pins: tuple[str, ...] = ()
    remove_pins: tuple[str, ...] = ()
    set_labels: Mapping[str, str] = field(default_factory=dict)
    remove_labels: tuple[str, ...] = ()
    default_branch: str = ""
    retention: Retention | None = field(default=None, metadata=LATE)
    ttl_s: int | None = field(default=None, metadata=LATE)


@dataclass(frozen=True, slots=True)
class NodePage:
    """Nodes newest first, and where the next page begins (0 at the end)."""

    nodes: tuple[Node, ...]
    next_before: NodeId


@dataclass(frozen=True, slots=True)
class FoundStep:
    """A step by its client id, and the branch on which it was written."""

    client_step_id: str
    branch: str
    node_id: NodeId


class Scope(IntEnum):
    """Where a search looks (numbers of the API)."""

    UNSPECIFIED = 0
    PATH = 1
    BRANCH = 2
    TREE = 3


@dataclass(frozen=True, slots=True)
class Hits:
    """Nodes whose record says every word, newest first, and whether an ACTIVE branch holds each."""

    nodes: tuple[Node, ...]
    live: tuple[bool, ...]
    next_before: NodeId


class TreeContents(Protocol):
    """The part of a tree store that is not about branches. Errors: see `katsura.state.trees`."""

    async def update(self, ref: TreeRef, change: TreeChange, request: Request) -> Tree:
        """Change a tree. Raises RESOURCE_EXHAUSTED where it would have too many pins or labels."""
        ...

    async def put_attachments(
        self, ref: TreeRef, node_id: int, attachments: Sequence[Attachment], replace: bool
    ) -> tuple[tuple[bool, ...], int]:
        """Put bytes beside a node; which of them were written, and the tree's revision."""
        ...

    async def list_nodes(
        self, ref: TreeRef, before: int, page_size: int, bytes_max: int, birth_branch: str
    ) -> NodePage:
        """Nodes made before `before` (0: all), on one branch or on any."""
        ...

    async def find_steps(self, ref: TreeRef, client_step_ids: Sequence[str], branch: str) -> tuple[FoundStep, ...]:
        """Steps by client id, on one branch or ("") on every one, by name."""
        ...

    async def search(
        self,
        ref: TreeRef,
        scope: Scope,
        branch: str,
        words: Sequence[bytes],
        before: int,
        page_size: int,
        bytes_max: int,
        include_abandoned: bool,
    ) -> Hits:
        """Nodes whose record holds every word (`tree_records.search_word`)."""
        ...

    async def redact(self, ref: TreeRef, node_ids: Sequence[int], request: Request) -> tuple[tuple[NodeId, ...], int]:
        """Destroy content and salt of nodes, and of summaries and hints that may quote them; all their ids, and the
        tree's revision."""
        ...
