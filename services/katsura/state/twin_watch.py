"""Watching trees in memory: the twin of `tree_watch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import EventKind, Tree
from katsura.state.contents import TreeRef
from katsura.state.trees import refusal
from katsura.state.twin_cold import TwinCold
from katsura.state.twin_tree import TwinTree
from katsura.state.watching import Event, News, Position, Tails, begin_after, compacted


class TwinWatch(TwinCold):
    """The part of the twin that tells of commits."""

    @property
    def incarnation(self) -> str:
        """This life of the store."""
        return self._incarnation

    async def shown(self, ref: TreeRef) -> Tree:
        """The tree as it is listed."""
        tree = self._everything().get(ref)
        if tree is None:
            raise refusal(ref, "TREE_NOT_FOUND")
        return tree

    async def tails(self, tenant: TenantId, *, notices: bool) -> Tails:
        """A view of no tree yet."""
        return TwinTails(self, tenant, notices=notices)

    async def remains(self, ref: TreeRef, token: str) -> tuple[Event, ...]:
        """What is still kept of a tree that is gone."""
        events = self._dropped[ref].events if ref in self._dropped else []
        at = [i for i, event in enumerate(events) if event.resume_token == token]
        return tuple(events[at[0] + 1 :]) if at else ()

    async def watch(
        self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float
    ) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        tree = self._state(ref).tree
        tails = TwinTails(self, ref.tenant, notices=False)
        await tails.join(tree, tree.revision if after_revision == -1 else after_revision, resume_token)
        while True:
            news = await tails.next(heartbeat_s)
            position = Position(tails.revision(ref.tree), self._incarnation)
            for event in news.events if news else [Event(EventKind.HEARTBEAT, position, tree_id=ref.tree)]:
                yield event
                if event.kind is EventKind.TREE_DELETED:
                    return

    def _twin(self, ref: TreeRef) -> TwinTree:
        """A tree, cold or not, or as it was when it was dropped."""
        found = self._trees.get(ref) or self._frozen.get(ref) or self._dropped.get(ref)
        if found is None:
            raise refusal(ref, "TREE_NOT_FOUND")
        return found


class TwinTails:
    """One watcher's places in trees."""

    def __init__(self, forest: TwinWatch, tenant: TenantId, *, notices: bool) -> None:
        self._forest = forest
        self._tenant = tenant
        self._places: dict[str, tuple[TwinTree, int]] = {}
        self._noticed = len(forest._notices) if notices else -1

    def revision(self, tree_id: str) -> int:
        """The last revision of a tree that was heard of."""
        return self._places[tree_id][1]

    async def join(self, tree: Tree, after: int, token: str = "") -> None:
        """Hear what follows a point of a tree."""
        state = self._forest._twin(TreeRef(self._tenant, TreeId(tree.tree_id)))
        first = state.events[0].position.revision if state.events else state.tree.revision + 1
        found = any(event.resume_token == token for event in state.events)
        self._places[tree.tree_id] = (state, begin_after(tree, after, token, first, found))

    async def leave(self, tree_id: str) -> None:
        """Hear no more of a tree."""
        self._places.pop(tree_id, None)

    async def next(self, limit_s: float) -> News | None:
        """What came, or None after a silence."""
        while True:
            changed = self._forest._changed
            for tree_id, (state, at) in self._places.items():
                events = [event for event in state.events if event.position.revision > at]
                if events:
                    if at and events[0].position.revision > at + 1:
                        raise compacted(f"revisions from {at + 1} are no longer kept", tree_id)
                    self._places[tree_id] = (state, events[-1].position.revision)
                    return News(events)
            if 0 <= self._noticed < len(self._forest._notices):
                new, self._noticed = self._forest._notices[self._noticed :], len(self._forest._notices)
                if noticed := {ref.tree: revision for ref, revision in new if ref.tenant == self._tenant}:
                    return News(noticed=noticed)
            try:
                async with asyncio.timeout(limit_s):
                    await changed.wait()
            except TimeoutError:
                return None

    async def close(self) -> None:
        """Leave all trees."""
        self._places.clear()
