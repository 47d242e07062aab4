"""Watching a memory tree in Redis: its stream of events, without gaps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError, NotFoundError
from katsura.domain.trees import (
    EventKind,
    Tree,
)
from katsura.state import keys
from katsura.state.connect import translated
from katsura.state.tree_calls import NO_LIMIT, TreeCalls
from katsura.state.tree_replies import (
    event_of,
)
from katsura.state.trees import (
    Event,
    Position,
    TreeRef,
    compacted,
)

_EVENTS_PER_READ: Final = 256


class TreeWatch(TreeCalls):
    """The half of the store that streams commits."""

    async def watch(
        self, ref: TreeRef, resume_token: str, after_revision: int, heartbeat_s: float
    ) -> AsyncIterator[Event]:
        """Every commit after a point, once and in order."""
        tree, _ = await self._read(ref)
        stream = keys.tree(ref.tenant, ref.tree, "events")
        at = await self._watch_start(stream, tree, resume_token, after_revision)
        client = await self._store.blocking_client()
        block_ms = round(heartbeat_s * 1000)
        try:
            while True:
                with translated(self._store.url):
                    found: Any = await client.xread({stream: at}, count=_EVENTS_PER_READ, block=block_ms)
                if not found:
                    yield await self._heartbeat(ref, tree, at)
                    continue
                for entry, fields in found[0][1]:
                    event = event_of(tree, entry, fields)
                    before = int(at.partition("-")[0])
                    if before and event.position.revision != before + 1:
                        raise compacted(f"revisions {before + 1} to {event.position.revision - 1} are no longer kept")
                    yield event
                    if event.kind is EventKind.TREE_DELETED:
                        return
                    at = entry.decode()
        finally:
            await client.aclose()

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

    async def _heartbeat(self, ref: TreeRef, tree: Tree, at: str) -> Event:
        try:
            now, _ = await self._read(ref)
        except NotFoundError:
            now = None
        if now is None or now.create_ms != tree.create_ms:
            return Event(EventKind.TREE_DELETED, Position(tree.revision, tree.incarnation))
        return Event(EventKind.HEARTBEAT, Position(now.revision, now.incarnation), resume_token="")
