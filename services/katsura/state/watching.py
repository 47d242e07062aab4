"""Watching trees: what a commit looks like from outside, and one watcher's view of many trees."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from katsura.domain.errors import InvalidArgumentError, OutOfRangeError, Reason
from katsura.domain.ids import NodeId, TenantId, TreeId
from katsura.domain.trees import EventKind, Tree
from katsura.state.contents import TreeRef

NOTICES_MAX: Final = 1024
"""Trees that were made or labelled anew and that a watcher has not looked at yet."""


@dataclass(frozen=True, slots=True)
class Position:
    """A point in time of a tree; a revision means nothing in another life of the store."""

    revision: int
    incarnation: str


@dataclass(frozen=True, slots=True)
class Event:
    """One commit, or a heartbeat."""

    kind: EventKind
    position: Position
    branch: str = ""
    node_ids: tuple[NodeId, ...] = ()
    resume_token: str = ""
    tree_id: str = ""


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher of many trees has not heard yet.

    Attributes:
        events: the next commits of one tree, in order.
        noticed: trees that were made or labelled anew, and the revision of that commit; a hint that may come twice.
    """

    events: Sequence[Event] = ()
    noticed: Mapping[TreeId, int] = field(default_factory=dict)


class Tails(Protocol):
    """Commits of many trees of one tenant for one watcher. A watcher that is busy reads later what it missed, by
    itself: nothing waits for it, and what is kept for it does not grow."""

    async def join(self, tree: Tree, after: int, token: str = "") -> None:
        """Hear what follows revision `after` of a tree (0: from the first that is kept), or the event of a token.

        Args:
            tree: as `shown`; a cold one stays cold.

        Raises:
            OutOfRangeError: WATCH_COMPACTED, the point is no longer kept, or belongs to another life of the store.
        """
        ...

    async def leave(self, tree_id: str) -> None:
        """Hear no more of a tree."""
        ...

    async def next(self, limit_s: float) -> News | None:
        """What came, or None after `limit_s` seconds of silence.

        Raises:
            OutOfRangeError: WATCH_COMPACTED, this watcher was too slow for what is kept.
            UnavailableError: the store does not answer, or notices came faster than they were looked at.
        """
        ...

    async def close(self) -> None:
        """Leave all trees."""
        ...


class TreeWatching(Protocol):
    """The part of the store that tells of commits."""

    @property
    def incarnation(self) -> str:
        """This life of the store."""
        ...

    async def shown(self, ref: TreeRef) -> Tree:
        """The tree as it is listed: a cold one is not brought back. Raises TREE_NOT_FOUND."""
        ...

    async def tails(self, tenant: TenantId, *, notices: bool) -> Tails:
        """A view of no tree yet; with `notices` it tells of trees made, imported or labelled from now on."""
        ...

    async def remains(self, ref: TreeRef, token: str) -> tuple[Event, ...]:
        """What is still kept of a tree that is gone after the event of a token: up to TREE_DELETED, or nothing."""
        ...

    def watch(self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order, and a heartbeat in each silence of `heartbeat_s` seconds.

        Raises:
            OutOfRangeError: WATCH_COMPACTED, the point is no longer kept, or belongs to another life of the store.
        """
        ...


def compacted(why: str, tree_id: str) -> OutOfRangeError:
    """The error for a point in time that cannot be gone on from."""
    return OutOfRangeError(
        f"tree {tree_id!r}: {why}; read it again and watch from its revision",
        reason=Reason.WATCH_COMPACTED,
        field="resume_token",
        metadata={"tree_id": tree_id},
    )


def token_after(tree: Tree) -> str:
    """The resume token of a tree's newest event."""
    return f"{tree.incarnation}.{tree.revision}-{tree.update_ms}"


def told(token: str) -> tuple[str, int, int]:
    """Incarnation, revision and time (ms) of a resume token's event."""
    incarnation, _, entry = token.partition(".")
    revision, _, ms = entry.partition("-")
    if not (revision.isascii() and revision.isdecimal() and ms.isascii() and ms.isdecimal()):
        raise InvalidArgumentError("resume_token is not one of ours", field="resume_token")
    return incarnation, int(revision), int(ms)


def begin_after(tree: Tree, after: int, token: str, first: int, found: bool) -> int:
    """The revision after which a watch of a tree begins; 0 is before the first one that is kept.

    Args:
        first: the oldest revision that is kept; the next one to come where none is.
        found: the very event of `token` is kept.

    Raises:
        OutOfRangeError: WATCH_COMPACTED, it would begin with a gap, or in another history.
    """
    if token:
        incarnation, revision, ms = told(token)
        if incarnation != tree.incarnation or ms < tree.create_ms:
            raise compacted("the resume token belongs to another life of the store or of the tree", tree.tree_id)
        if not found and first != revision + 1:
            raise compacted("the event of the resume token is no longer kept", tree.tree_id)
        return revision
    if after > tree.revision or (after > 0 and first > after + 1):
        raise compacted(f"revisions {first} to {tree.revision} are kept", tree.tree_id)
    return after
