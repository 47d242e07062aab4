"""Watching a memory tree in Redis: its stream of events, without gaps.

All who watch one tree in this process share a `_Tail`, one reader of what is new; what a watcher missed before, it
reads by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError, NotFoundError
from katsura.domain.trees import (
    EventKind,
    Tree,
)
from katsura.state import keys
from katsura.state.connect import Store, translated
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_replies import (
    event_of,
)
from katsura.state.trees import (
    Event,
    Limits,
    Position,
    TreeRef,
    compacted,
)
from katsura.state.usage import Count, uncounted

_EVENTS_PER_READ: Final = 256
_TAIL_EVENTS: Final = 1024
_BLOCK_S: Final = 5.0
_SILENT_S: Final = 10.0
_CANCEL_AGAIN_S: Final = 0.5


class _Tail:
    """The newest events of a tree, none missing after the revision `after` but what was too much to keep."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.events: deque[Event] = deque(maxlen=_TAIL_EVENTS)
        self.news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.watchers = 0
        self.reading: asyncio.Task[None] | None = None

    def next_to(self, revision: int) -> Event | None:
        """The event after `revision`, if it is here."""
        at = revision + 1 - self.events[0].position.revision if self.events else -1
        return self.events[at] if 0 <= at < len(self.events) else None

    def reaches(self, revision: int) -> bool:
        """Whether all that follows `revision` is here, or will be."""
        oldest = self.events[0].position.revision if self.events else self.after + 1
        return revision >= max(self.after, oldest - 1) and revision > 0

    def tell(self) -> None:
        """Wake whoever waits."""
        news, self.news = self.news, asyncio.get_running_loop().create_future()
        news.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Nothing new will come: whoever waits, now or later, is told why."""
        self.news.set_exception(error)
        self.news.exception()  # nobody may be waiting

    async def end(self) -> None:
        """Stop reading. Asked again until it is so: the client's `wait_for` of Python 3.11 can lose a cancel."""
        while self.reading is not None and not self.reading.done():
            self.reading.cancel()
            await asyncio.wait((self.reading,), timeout=_CANCEL_AGAIN_S)


class TreeWatch(TreeCalls):
    """The half of the store that streams commits."""

    def __init__(self, store: Store, limits: Limits, count: Count = uncounted) -> None:
        super().__init__(store, limits, count)
        self._tails: dict[tuple[TreeRef, str, int], _Tail] = {}

    async def watch(
        self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float
    ) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        tree, _ = await self._read(ref)
        stream = keys.tree(ref.tenant, ref.tree, "events")
        at = await self._watch_start(stream, tree, resume_token, after_revision)
        life = (ref, tree.incarnation, tree.create_ms)
        tail = self._joined(life, tree, stream)
        revision = int(at.partition("-")[0])
        try:
            while True:
                news = tail.news  # taken first: what comes while this reads must wake it
                if tail.reaches(revision):
                    found = tail.next_to(revision)
                    events = [found] if found else []
                else:
                    events = await self._missed(tree, stream, f"({revision}-{NO_LIMIT}" if revision else "-")
                for event in events:
                    if revision and event.position.revision != revision + 1:
                        raise compacted(f"revisions {revision + 1} to {event.position.revision - 1} are no longer kept")
                    yield event
                    if event.kind is EventKind.TREE_DELETED:
                        return
                    revision = event.position.revision
                if not events and not await _told(news, heartbeat_s):
                    yield await self._heartbeat(ref, tree)
        finally:
            tail.watchers -= 1
            if not tail.watchers:
                self._forget(life, tail)
                await tail.end()

    def _joined(self, life: tuple[TreeRef, str, int], tree: Tree, stream: bytes) -> _Tail:
        tail = self._tails.get(life)
        if tail is None:
            tail = self._tails[life] = _Tail(tree.revision)

            def ended(reading: asyncio.Task[None], tail: _Tail = tail) -> None:
                error = None if reading.cancelled() else reading.exception()
                if error is not None:
                    self._forget(life, tail)
                    tail.fail(error)

            tail.reading = asyncio.get_running_loop().create_task(self._read_tail(tail, tree, stream))
            tail.reading.add_done_callback(ended)
        tail.watchers += 1
        return tail

    def _forget(self, life: tuple[TreeRef, str, int], tail: _Tail) -> None:
        if self._tails.get(life) is tail:
            del self._tails[life]

    async def _read_tail(self, tail: _Tail, tree: Tree, stream: bytes) -> None:
        """Read what is new until it is cancelled, or the store fails."""
        at: str | bytes = f"{tail.after}-{NO_LIMIT}"
        block_ms = round(_BLOCK_S * 1000)
        client = await self._store.blocking_client()
        try:
            while True:
                with translated(self._store.url):
                    async with asyncio.timeout(_SILENT_S):
                        found: Any = await client.xread({stream: at}, count=_EVENTS_PER_READ, block=block_ms)
                if not found:
                    continue  # nothing for _BLOCK_S, but the server is there
                for entry, fields in found[0][1]:
                    tail.events.append(event_of(tree, entry, fields))
                    at = entry
                tail.tell()
        finally:
            await client.aclose()

    async def _missed(self, tree: Tree, stream: bytes, after: str) -> list[Event]:
        with translated(self._store.url):
            found: Any = await self._store.client.xrange(stream, after, count=_EVENTS_PER_READ)
        return [event_of(tree, entry, fields) for entry, fields in found]

    async def _watch_start(self, stream: bytes, tree: Tree, token: str, after: int) -> str:
        if token:
            incarnation, _, entry = token.partition(".")
            if incarnation != tree.incarnation:
                raise compacted("the resume token belongs to another life of the store")
            try:
                with translated(self._store.url):
                    kept = await self._store.client.xrange(stream, entry, entry)
            except ValueError as error:
                raise InvalidArgumentError("resume_token is not one of ours", field="resume_token") from error
            if not kept:
                raise compacted("the event of the resume token is no longer kept")
            return entry
        if after == -1:
            return f"{tree.revision}-{NO_LIMIT}"
        if after == 0:
            return "0-0"
        with translated(self._store.url):
            oldest: Any = await self._store.client.xrange(stream, count=1)
        first = int(oldest[0][0].partition(b"-")[0]) if oldest else tree.revision + 1
        if after > tree.revision or first > after + 1:
            raise compacted(f"revisions {first} to {tree.revision} are kept")
        return f"{after}-{NO_LIMIT}"

    async def _heartbeat(self, ref: TreeRef, tree: Tree) -> Event:
        try:
            now, _ = await self._read(ref)
        except NotFoundError:
            now = None
        if now is None or now.create_ms != tree.create_ms:
            return Event(EventKind.TREE_DELETED, Position(tree.revision, tree.incarnation))
        return Event(EventKind.HEARTBEAT, Position(now.revision, now.incarnation), resume_token="")


async def _told(news: asyncio.Future[None], limit_s: float) -> bool:
    """Wait for something new; False where nothing came in time. Raises what the reader ended with."""
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.shield(news)
    except TimeoutError:
        return False
    return True
