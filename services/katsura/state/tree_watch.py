"""Watching memory trees in Redis: their streams of events, without gaps.

All who watch one tree in this process share a `_Tail` of its newest events, and all tails one blocking read
(`stream_reader`). A watcher has a place in each tail and a list of those that have more for it; what it missed
before, or while it was busy, it reads by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from katsura.domain.errors import NotFoundError, Reason, UnavailableError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import EventKind, Tree
from katsura.state import keys
from katsura.state.connect import Store
from katsura.state.contents import TreeRef
from katsura.state.stream_reader import Entry, Followed, StreamReader
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_replies import event_of
from katsura.state.trees import Limits
from katsura.state.usage import Count, uncounted
from katsura.state.watching import (
    NOTICES_MAX,
    Event,
    News,
    Position,
    Tails,
    begin_after,
    compacted,
    told,
)

_EVENTS_PER_READ: Final = 256
_TAIL_EVENTS: Final = 1024
_TAIL_EVENTS_LEAST: Final = 16
_ALL_TAILS_EVENTS: Final = 65536


class _Tail:
    """The newest events of one life of a tree, none missing after revision `after` but what was too much to keep."""

    def __init__(self, reader: StreamReader, tree: Tree, stream: bytes) -> None:
        self.tree, self.after = tree, tree.revision
        self.events: deque[Event] = deque()
        self.watchers: set[RedisTails] = set()
        self.followed = Followed(stream, f"{self.after}-{NO_LIMIT}", self._take, self._fail)
        self.ended = False
        self._reader = reader

    def reaches(self, revision: int) -> bool:
        """Whether all that follows `revision` is here, or will be."""
        oldest = self.events[0].position.revision if self.events else self.after + 1
        return revision >= max(self.after, oldest - 1) and revision > 0

    def since(self, revision: int) -> list[Event]:
        """The next events after `revision`, if they are here."""
        at = revision + 1 - self.events[0].position.revision if self.events else 0
        return [self.events[i] for i in range(at, min(at + _EVENTS_PER_READ, len(self.events)))]

    def holds_after(self, revision: int) -> bool:
        """Whether something later than `revision` is here."""
        return bool(self.events) and self.events[-1].position.revision > revision

    def _take(self, entries: Sequence[Entry]) -> None:
        self.events.extend(event_of(self.tree.tree_id, self.tree.incarnation, *entry) for entry in entries)
        share = _ALL_TAILS_EVENTS // self._reader.followed
        while len(self.events) > min(_TAIL_EVENTS, max(_TAIL_EVENTS_LEAST, share)):
            self.events.popleft()
        for watcher in self.watchers:
            watcher.tell(self.tree.tree_id)

    def _fail(self, error: BaseException) -> None:
        self.ended = True
        for watcher in self.watchers:
            watcher.fail(error)


class _Notices:
    """Trees of one tenant that are made or labelled anew, for all who watch by label."""

    def __init__(self, stream: bytes, at: str) -> None:
        self.watchers: set[RedisTails] = set()
        self.followed = Followed(stream, at, self._take, self._fail)
        self.ended = False

    def _take(self, entries: Sequence[Entry]) -> None:
        for watcher in self.watchers:
            watcher.notice((TreeId(said[b"t"].decode()), int(said[b"r"])) for _, said in entries)

    def _fail(self, error: BaseException) -> None:
        self.ended = True
        for watcher in self.watchers:
            watcher.fail(error)


class _Place:
    """How far a watcher has come in a tree."""

    def __init__(self, tail: _Tail, revision: int) -> None:
        self.tail, self.revision = tail, revision


class RedisTails:
    """One watcher's places in the tails of trees."""

    def __init__(self, watch: TreeWatch, tenant: TenantId) -> None:
        self._watch = watch
        self._tenant = tenant
        self._places: dict[str, _Place] = {}
        self._ready: dict[str, None] = {}
        self._noticed: dict[TreeId, int] = {}
        self._notices: _Notices | None = None
        self._news = asyncio.Event()
        self._error: BaseException | None = None

    async def join(self, tree: Tree, after: int, token: str = "") -> None:
        """Hear what follows a point of a tree."""
        ref = TreeRef(self._tenant, TreeId(tree.tree_id))
        revision = after
        if token or 0 < after != tree.revision:
            first, found = await self._watch.kept(ref, tree, token)
            revision = begin_after(tree, after, token, first, found)
        await self._left(tree.tree_id)
        tail = self._watch.tail_of(ref, tree)
        tail.watchers.add(self)
        self._places[tree.tree_id] = _Place(tail, revision)
        if revision != tail.after or tail.events:
            self.tell(tree.tree_id)

    async def leave(self, tree_id: str) -> None:
        """Hear no more of a tree."""
        await self._left(tree_id)

    async def hear_notices(self) -> None:
        """Hear of trees that are made or labelled anew."""
        self._notices = await self._watch.notices_of(self._tenant)
        self._notices.watchers.add(self)

    async def next(self, limit_s: float) -> News | None:
        """What came, or None after a silence."""
        while True:
            self._news.clear()
            while self._ready or self._noticed:
                # A tree made anew: first what is left of the one before. Else notices first: commits may never end.
                ready = next((tree_id for tree_id in self._noticed if tree_id in self._ready), "")
                if self._noticed and not ready:
                    noticed, self._noticed = self._noticed, {}
                    return News(noticed=noticed)
                if events := await self._more(ready or next(iter(self._ready))):
                    return News(events)
            if self._error is not None:
                raise self._error
            try:
                async with asyncio.timeout(limit_s):
                    await self._news.wait()
            except TimeoutError:
                return None

    async def close(self) -> None:
        """Leave all trees."""
        if self._notices is not None:
            self._notices.watchers.discard(self)
            await self._watch.forget_notices(self._tenant, self._notices)
            self._notices = None
        for tree_id in list(self._places):
            await self._left(tree_id)

    def tell(self, tree_id: str) -> None:
        """There is more of a tree."""
        self._ready[tree_id] = None
        self._news.set()

    def notice(self, noticed: Iterable[tuple[TreeId, int]]) -> None:
        """Trees were made or labelled anew."""
        self._noticed.update(noticed)
        if len(self._noticed) > NOTICES_MAX:
            why = f"{NOTICES_MAX} trees were made or labelled while this watcher was busy; go on with its resume tokens"
            self.fail(UnavailableError(why, reason=Reason.STORE_UNAVAILABLE))
            self._noticed.clear()
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """Nothing new will come."""
        self._error = error
        self._news.set()

    async def _more(self, tree_id: str) -> list[Event]:
        """The next events of a tree that has some, or had."""
        place = self._places[tree_id]
        del self._ready[tree_id]  # first: what comes while this reads must be told again
        tail, at = place.tail, place.revision
        try:
            events = tail.since(at) if tail.reaches(at) else await self._watch.missed(self._tenant, tail.tree, at)
        except BaseException:
            self._ready[tree_id] = None
            raise
        if events:
            if at and events[0].position.revision != at + 1:
                gap = f"revisions {at + 1} to {events[0].position.revision - 1} are no longer kept"
                raise compacted(gap, tree_id)
            place.revision = events[-1].position.revision
            if len(events) == _EVENTS_PER_READ or tail.holds_after(place.revision):
                self._ready[tree_id] = None
        return events

    async def _left(self, tree_id: str) -> None:
        place = self._places.pop(tree_id, None)
        self._ready.pop(tree_id, None)
        if place is not None:
            place.tail.watchers.discard(self)
            await self._watch.forget(place.tail)


class TreeWatch(TreeCalls):
    """The half of the store that streams commits."""

    def __init__(self, store: Store, limits: Limits, count: Count = uncounted) -> None:
        super().__init__(store, limits, count)
        self._reader = StreamReader(store)
        self._tails: dict[tuple[bytes, str, int], _Tail] = {}
        self._noticing: dict[TenantId, _Notices] = {}

    @property
    def incarnation(self) -> str:
        """This life of the store."""
        return self._store.incarnation

    async def tails(self, tenant: TenantId, *, notices: bool) -> Tails:
        """A view of no tree yet."""
        tails = RedisTails(self, tenant)
        if notices:
            await tails.hear_notices()
        return tails

    async def watch(
        self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float
    ) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        tree, _ = await self._read(ref)
        tails = RedisTails(self, ref.tenant)
        try:
            await tails.join(tree, tree.revision if after_revision == -1 else after_revision, resume_token)
            while True:
                news = await tails.next(heartbeat_s)
                for event in news.events if news else [await self._heartbeat(ref, tree)]:
                    yield event
                    if event.kind is EventKind.TREE_DELETED:
                        return
        finally:
            await tails.close()

    async def remains(self, ref: TreeRef, token: str) -> tuple[Event, ...]:
        """What is still kept of a tree that is gone."""
        incarnation, revision, ms = told(token)
        stream = keys.tree(ref.tenant, ref.tree, "events")
        found = await self._range(stream, f"{revision}-{ms}", "+")
        if not found or found[0][0] != f"{revision}-{ms}".encode() or int(found[-1][1][b"k"]) != EventKind.TREE_DELETED:
            return ()
        return tuple(event_of(ref.tree, incarnation, *each) for each in found[1:])

    async def kept(self, ref: TreeRef, tree: Tree, token: str) -> tuple[int, bool]:
        """The oldest revision whose event is kept (the next one where none is), and whether a token's event is."""
        stream = keys.tree(ref.tenant, ref.tree, "events")
        entry = "{1}-{2}".format(*told(token)) if token else ""
        oldest = await self._range(stream, "-", "+", 1)
        found = await self._range(stream, entry, entry) if entry else []
        return int(oldest[0][0].partition(b"-")[0]) if oldest else tree.revision + 1, bool(found)

    async def missed(self, tenant: TenantId, tree: Tree, revision: int) -> list[Event]:
        """Events of a tree after a revision, read for one watcher alone."""
        stream = keys.tree(tenant, tree.tree_id, "events")
        after = f"({revision}-{NO_LIMIT}" if revision else "-"
        found = await self._range(stream, after, "+", _EVENTS_PER_READ)
        return [event_of(tree.tree_id, tree.incarnation, *each) for each in found]

    def tail_of(self, ref: TreeRef, tree: Tree) -> _Tail:
        """The tail of a tree, from now on where nobody has it yet."""
        life = _life(keys.tree(ref.tenant, ref.tree, "events"), tree)
        tail = self._tails.get(life)
        if tail is None or tail.ended:
            tail = self._tails[life] = _Tail(self._reader, tree, life[0])
            self._reader.follow(tail.followed)
        return tail

    async def notices_of(self, tenant: TenantId) -> _Notices:
        """What tells of a tenant's trees that are made or labelled anew."""
        stream = keys.tree_notices(tenant)
        newest = await self._store.command("XREVRANGE", stream, "+", "-", "COUNT", 1)
        notices = self._noticing.get(tenant)
        if notices is None or notices.ended:
            notices = self._noticing[tenant] = _Notices(stream, newest[0][0].decode() if newest else "0-0")
            self._reader.follow(notices.followed)
        return notices

    async def forget(self, tail: _Tail) -> None:
        """Read a tree no more where nobody watches it."""
        if not tail.watchers:
            life = _life(tail.followed.stream, tail.tree)
            if self._tails.get(life) is tail:
                del self._tails[life]
            await self._reader.leave(tail.followed)

    async def forget_notices(self, tenant: TenantId, notices: _Notices) -> None:
        """The same of notices."""
        if not notices.watchers:
            if self._noticing.get(tenant) is notices:
                del self._noticing[tenant]
            await self._reader.leave(notices.followed)

    async def _range(self, stream: bytes, first: str, last: str, most: int = NO_LIMIT) -> list[Entry]:
        found = await self._store.command("XRANGE", stream, first, last, "COUNT", most)
        return [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in found]

    async def _heartbeat(self, ref: TreeRef, tree: Tree) -> Event:
        try:
            now, _ = await self._read(ref)
        except NotFoundError:
            now = None
        if now is None or now.create_ms != tree.create_ms:
            return Event(EventKind.TREE_DELETED, Position(tree.revision, tree.incarnation), tree_id=tree.tree_id)
        return Event(EventKind.HEARTBEAT, Position(now.revision, now.incarnation), tree_id=tree.tree_id)


def _life(stream: bytes, tree: Tree) -> tuple[bytes, str, int]:
    return stream, tree.incarnation, tree.create_ms
