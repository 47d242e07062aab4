"""Watch over many trees: those named and those that have labels, as they come and go.

Order is kept within a tree, never promised between two. Where a watch stands is one token per tree, the one that its
last event carried, and one under "" that tells a resumed watch from a new one: a tree without a token is new to a
resumed watch, and is told from the first revision that is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.errors import NotFoundError, ResourceExhaustedError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import EventKind, Tree
from katsura.memory.core import limits
from katsura.state.trees import TreeRef, TreeStore, page_after, refusal
from katsura.state.watching import Event, News, Position, Tails, compacted, token_after, told

_LISTED: Final = 256
_LOOKED_AT: Final = 16
"""Of the newest trees, whether one is new."""
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True)
class Followed:
    """Which trees to watch, and from where.

    Attributes:
        tree_ids: named ones. labels: and those that have all of these, where there are any.
        tokens: tree id -> its last resume token, and under "" the watch's own; empty begins a watch.
        from_now: a new watch tells what comes next, not what is kept.
    """

    tree_ids: tuple[str, ...]
    labels: Mapping[str, str]
    tokens: Mapping[str, str]
    from_now: bool

    def __post_init__(self) -> None:
        if not self.tree_ids and not self.labels:
            raise limits.refuse("tree_ids", "name trees, or labels that they have")
        for field, count in (("tree_ids", len(self.tree_ids)), ("resume_tokens", len(self.tokens) - 1)):
            if count > limits.TREES_WATCHED_MAX:
                raise limits.refuse(field, f"{count} trees; one Watch follows {limits.TREES_WATCHED_MAX}")
        for i, tree_id in enumerate(self.tree_ids):
            if tree_id in self.tree_ids[:i]:
                raise limits.refuse(f"tree_ids[{i}]", f"{tree_id!r} is named twice")
        limits.check_map(self.labels, "labels")
        for tree_id, token in self.tokens.items():
            field = f"resume_tokens[{tree_id[:32]!r}]"
            told(limits.check_text(token, field))
        if self.tokens and "" not in self.tokens:
            raise limits.refuse("resume_tokens", 'the token of the watch itself is missing: send the one of tree id ""')

    def wants(self, tree: Tree) -> bool:
        """Whether a tree is one of those."""
        return tree.tree_id in self.tree_ids or (bool(self.labels) and self.labels.items() <= tree.labels.items())


async def follow(trees: TreeStore, tenant: TenantId, asked: Followed, heartbeat_s: float) -> AsyncIterator[Event]:
    """Commits of the trees asked for, each once and in the order of its tree; heartbeats, the first once it stands.

    TREE_DELETED and TREE_LEFT end a tree; where nothing is left that may come, they end the stream.

    Raises:
        NotFoundError: TREE_NOT_FOUND, a new watch names a tree that is not there.
        OutOfRangeError: WATCH_COMPACTED, it cannot go on without a gap in the tree "tree_id" of the metadata.
        ResourceExhaustedError: more than TREES_WATCHED_MAX trees.
    """
    tails = await trees.tails(tenant, notices=bool(asked.labels))
    try:
        async for event in _Following(trees, tenant, asked, tails, heartbeat_s).events():
            yield event
    finally:
        await tails.close()


class _Following:
    """What one watch knows of its trees."""

    def __init__(self, trees: TreeStore, tenant: TenantId, asked: Followed, tails: Tails, heartbeat_s: float) -> None:
        self._trees, self._tenant, self._asked, self._tails = trees, tenant, asked, tails
        self._heartbeat_s = heartbeat_s
        self._watched: dict[str, Tree] = {}
        """As they were when they were looked at last."""
        self._leaving: dict[str, int] = {}
        """Trees that are not wanted any more, and the revision up to which they are told."""
        self._newest = ""
        """Place in the tenant's list before which every tree was looked at."""

    async def events(self) -> AsyncIterator[Event]:
        """Everything that the watch tells."""
        async for event in self._begin():
            yield event
        loop = asyncio.get_running_loop()
        beat_at, silent = loop.time() + self._heartbeat_s, True
        while self._asked.labels or self._watched:
            news = await self._tails.next(max(0.0, beat_at - loop.time()))
            async for event in self._heard(news or News()):
                silent = False
                yield event
            if loop.time() >= beat_at:
                async for event in self._looked():
                    silent = False
                    yield event
                if silent:
                    yield self._beat()
                beat_at, silent = loop.time() + self._heartbeat_s, True

    async def _begin(self) -> AsyncIterator[Event]:
        asked, tokens = self._asked, self._asked.tokens
        incarnation = self._trees.incarnation
        if tokens and told(tokens[""])[0] != incarnation:
            raise compacted("the resume token belongs to another life of the store", "")
        found: dict[str, Tree] = {}
        if asked.labels:
            found = {tree.tree_id: tree async for tree in self._listed("") if asked.wants(tree)}
        named = [name for name in dict.fromkeys((*asked.tree_ids, *filter(None, tokens))) if name not in found]
        for name, tree in zip(named, await self._shown(named), strict=True):
            if tree is not None:
                found[name] = tree
            elif not tokens:
                raise refusal(TreeRef(self._tenant, TreeId(name)), "TREE_NOT_FOUND")
            elif name in tokens:
                ref = TreeRef(self._tenant, TreeId(name))
                for event in await self._trees.remains(ref, tokens[name]) or [_deleted(name, tokens[name])]:
                    yield event
        for tree in found.values():
            async for event in self._resumed(tree):
                yield event
        yield self._beat()

    async def _resumed(self, tree: Tree) -> AsyncIterator[Event]:
        """Join a tree where the watch begins, or goes on."""
        asked, wanted = self._asked, self._asked.wants(tree)
        token = asked.tokens.get(tree.tree_id, "")
        if token and told(token)[2] < tree.create_ms:  # another tree has the name now
            yield _deleted(tree.tree_id, token)
            token = ""
            if not wanted:
                return
        new = asked.from_now and not asked.tokens
        await self._join(tree, tree.revision if new else 0, token)
        if new:
            position = Position(tree.revision, tree.incarnation)
            yield Event(EventKind.HEARTBEAT, position, resume_token=token_after(tree), tree_id=tree.tree_id)
        elif not wanted and told(token)[1] >= tree.revision:
            yield await self._left(tree.tree_id, tree.revision)
        elif not wanted:
            self._leaving[tree.tree_id] = tree.revision

    async def _heard(self, news: News) -> AsyncIterator[Event]:
        """What the store tells, and what follows from it."""
        for event in news.events:
            tree_id, revision = event.tree_id, event.position.revision
            yield event
            if event.kind is EventKind.TREE_DELETED:
                await self._forget(tree_id)
                return
            if event.kind is EventKind.TREE_UPDATED:
                await self._look_again(tree_id)
            if self._leaving.get(tree_id, revision + 1) <= revision:
                yield await self._left(tree_id, revision)
                return
        for tree_id, revision in news.noticed.items():
            (tree,), before = await self._shown([tree_id]), self._watched.get(tree_id)
            if tree is not None and before is not None and before.create_ms != tree.create_ms:
                yield _deleted(tree_id, token_after(before))  # and made anew before it was heard
                await self._forget(tree_id)
                before, revision = None, 1
            if tree is not None and before is None and self._asked.wants(tree):
                await self._join(tree, revision - 1)

    async def _look_again(self, tree_id: str) -> None:
        """A tree was updated: is it still wanted?"""
        (tree,), before = await self._shown([tree_id]), self._watched[tree_id]
        if tree is None or tree.create_ms != before.create_ms:
            return  # its deletion will be told
        self._watched[tree_id] = tree
        if self._asked.wants(tree):
            self._leaving.pop(tree_id, None)
        else:
            self._leaving[tree_id] = tree.revision

    async def _looked(self) -> AsyncIterator[Event]:
        """What nobody tells: trees that expired, and trees that an older version of us made."""
        if self._asked.labels:
            for tree in [tree async for tree in self._listed(self._newest) if self._asked.wants(tree)]:
                if tree.tree_id not in self._watched:
                    await self._join(tree, 0)
        mortal = [name for name, tree in self._watched.items() if tree.policy.ttl_s]
        for name, now in zip(mortal, await self._shown(mortal), strict=True):
            before = self._watched[name]
            if now is None or now.create_ms != before.create_ms:
                yield _deleted(name, token_after(before))
                await self._forget(name)

    async def _join(self, tree: Tree, after: int, token: str = "") -> None:
        if len(self._watched) >= limits.TREES_WATCHED_MAX:
            raise ResourceExhaustedError(
                f"more than {limits.TREES_WATCHED_MAX} trees have these labels; watch fewer in one call",
                field="labels",
            )
        await self._tails.join(tree, after, token)
        self._watched[tree.tree_id] = tree

    async def _left(self, tree_id: str, revision: int) -> Event:
        await self._forget(tree_id)
        return Event(EventKind.TREE_LEFT, Position(revision, self._trees.incarnation), tree_id=tree_id)

    async def _forget(self, tree_id: str) -> None:
        self._watched.pop(tree_id, None)
        self._leaving.pop(tree_id, None)
        await self._tails.leave(tree_id)

    async def _shown(self, names: Sequence[str]) -> list[Tree | None]:
        found: list[Tree | None] = []
        for at in range(0, len(names), _AT_ONCE):
            found += await asyncio.gather(*map(self._shown_one, names[at : at + _AT_ONCE]))
        return found

    async def _shown_one(self, name: str) -> Tree | None:
        try:
            return await self._trees.shown(TreeRef(self._tenant, TreeId(name)))
        except NotFoundError:
            return None

    async def _listed(self, since: str) -> AsyncIterator[Tree]:
        """The tenant's trees that are newer than `since`."""
        token, more = "", True
        newest = since
        while more:
            page, token = await self._trees.trees(self._tenant, _LOOKED_AT if since else _LISTED, token)
            for tree in page:
                newest = max(newest, page_after(tree))
                if page_after(tree) > since:
                    yield tree
            more = bool(token) and token > since
        self._newest = newest

    def _beat(self) -> Event:
        incarnation = self._trees.incarnation
        return Event(EventKind.HEARTBEAT, Position(0, incarnation), resume_token=f"{incarnation}.0-0")


def _deleted(tree_id: str, token: str) -> Event:
    """The end of a tree that nothing else tells."""
    incarnation, revision, _ = told(token)
    return Event(EventKind.TREE_DELETED, Position(revision, incarnation), tree_id=tree_id)
