"""Cold trees in Valkey or Redis (functions/memory_c_cold.lua) and an object store.

The object is there to stay before the store lets go of the tree, and it is deleted only when the store has the tree
for good; a process that dies in between leaves an object that nobody names, never a tree that is nowhere.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Final

from katsura.domain.errors import (
    AlreadyExistsError,
    DataLossError,
    FailedPreconditionError,
    InternalError,
    KatsuraError,
    Reason,
    UnavailableError,
)
from katsura.domain.trees import Durability, Tree
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.archive import (
    Archived,
    ArchivedEnd,
    ArchivedHead,
    ArchivedNode,
    ArchivedReferences,
    end_line,
    line_of,
    part_of,
)
from katsura.state.archive_redis import RedisArchive
from katsura.state.connect import Arg, Store, translated
from katsura.state.contents import TreeRef
from katsura.state.foreign import Look, look_of
from katsura.state.objects import ObjectStore
from katsura.state.tree_calls import checked
from katsura.state.tree_records import looked_of
from katsura.state.tree_replies import tree_of
from katsura.state.trees import Limits
from katsura.state.usage import Count, uncounted

TAKEN_OVER_MS: Final = 5000
"""Silence after which a thaw is taken to be dead, and another one begins anew."""
_TRIES: Final = 3
_LOOK_AGAIN_S: Final = 0.05
_WAIT_S: Final = 60.0
_BARRIER_MS: Final = 5000
_FOLDER_MAX: Final = 128
"""Characters; quoting makes three of some, and file systems take 255."""


class RedisCold(RedisArchive):
    """The part of the store that moves trees out and back."""

    def __init__(
        self, store: Store, limits: Limits, count: Count = uncounted, objects: ObjectStore | None = None
    ) -> None:
        super().__init__(store, limits, count)
        self._objects = objects
        self._thawing: dict[TreeRef, asyncio.Lock] = {}

    async def freeze(self, ref: TreeRef) -> bool:
        """Move a tree into an object."""
        objects = self._place()
        name = f"{_folder(ref.tenant)}/{_folder(ref.tree)}/{secrets.token_hex(8)}.jsonl"
        await self.shown(ref)  # what is not there gets no folder
        revision = -1

        async def lines() -> AsyncIterator[bytes]:
            nonlocal revision
            nodes = 0
            async for part in self.dump(ref):
                if isinstance(part, ArchivedHead):
                    revision = part.tree.revision
                nodes += isinstance(part, ArchivedNode)
                yield line_of(part)
            async for looks in self._looks(ref):
                if looks:
                    yield line_of(ArchivedReferences(looks=looks))
            yield end_line(ArchivedEnd(nodes))  # the store keeps the digest of the whole object

        digest = await objects.put(name, lines())
        answer = await self._answer(ref, "freeze", revision, name, digest)
        if answer[0] != b"OK":
            await objects.delete(name)
            if answer[0] not in (b"MOVED", b"BUSY"):
                checked(ref, answer)
            return False
        self._count(ref.tenant, Usage(-1, -answer[1], -answer[2]))
        return True

    async def _looks(self, ref: TreeRef) -> AsyncIterator[tuple[Look, ...]]:
        async for fields in self._fields(ref, "looked"):
            yield tuple(look_of(place.decode(), looked_of(text)) for place, text in fields)

    async def _answer(self, ref: TreeRef, function: str, *arguments: Arg, read_only: bool = False) -> list[Any]:
        for _ in range(_TRIES):
            answer = await super()._answer(ref, function, *arguments, read_only=read_only)
            if answer[0] != b"TREE_COLD":
                return answer
            await self._thaw(ref)
        raise UnavailableError(f"tree {ref.tree!r} is being moved; ask again", reason=Reason.STORE_UNAVAILABLE)

    async def shown(self, ref: TreeRef) -> Tree:
        """The tree, a cold one as it was when it was moved out. Raises TREE_NOT_FOUND."""
        answer = await super()._answer(ref, "read", read_only=True)
        if answer[0] == b"OK":
            return replace(tree_of(ref, answer[1]), stale_count=answer[3])
        if answer[0] != b"TREE_COLD":
            checked(ref, answer)
        record = json.loads(checked(ref, await super()._answer(ref, "cold", read_only=True))[1])
        return replace(tree_of(ref, [text.encode() for text in record["meta"]]), cold=True)

    def _place(self) -> ObjectStore:
        if self._objects is None:
            raise FailedPreconditionError(
                "this memory process has no place for cold trees; set KATSURA_MEMORY_COLD_FOLDER",
                reason=Reason.COLD_UNAVAILABLE,
            )
        return self._objects

    async def _thaw(self, ref: TreeRef) -> None:
        async with self._thawing.setdefault(ref, asyncio.Lock()):
            try:
                await self._bring_back(ref)
            except AlreadyExistsError:
                return  # another process has begun anew: the next look tells how far it is
            finally:
                self._thawing.pop(ref, None)

    async def _bring_back(self, ref: TreeRef) -> None:
        objects, token = self._place(), secrets.token_hex(8)
        record = await self._begin(ref, token)
        if record is None:
            return
        try:
            await self._store.refresh()
            await self._restore(ref, token, self._parts(objects, record), "thaw_end")
        except KatsuraError:
            await self._answer(ref, "restore_abort", token)  # where the token is not ours any more, nothing happens
            raise
        if await self._kept():
            await objects.delete(record["object"])

    async def _begin(self, ref: TreeRef, token: str) -> dict[str, Any] | None:
        """What is known of the cold tree, once nobody else brings it back; None where it is not cold any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _WAIT_S
        while loop.time() < deadline:
            answer = await self._answer(ref, "thaw_begin", token, TAKEN_OVER_MS)
            if answer[0] == b"OK":
                record: dict[str, Any] = json.loads(answer[1])
                return record
            if answer[0] != b"THAWING":
                return None
            await asyncio.sleep(_LOOK_AGAIN_S)
        raise UnavailableError(f"tree {ref.tree!r} is being brought back; ask again", reason=Reason.STORE_UNAVAILABLE)

    async def _parts(self, objects: ObjectStore, record: dict[str, Any]) -> AsyncIterator[Archived]:
        digest, rest = blake2b(digest_size=32), b""
        async for piece in objects.get(record["object"]):
            digest.update(piece)
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not isinstance(part := part_of(line), ArchivedEnd):
                    yield part
        if digest.hexdigest() != record["digest"] or rest:
            raise DataLossError(
                f"the object {record['object']!r} is not as it was written; the tree stays cold",
                reason=Reason.UNSPECIFIED,
                metadata={"object": record["object"]},
            )

    async def _kept(self) -> bool:
        """Whether what was written so far survives all that the store promises: where the disk is synced each second,
        wait for it."""
        if self._store.durability is not Durability.RELAXED:
            return True
        pipeline = self._store.client.pipeline(transaction=False)
        pipeline.set(keys.BARRIER, "")
        pipeline.execute_command("WAITAOF", 1, 0, _BARRIER_MS)
        try:
            with translated(self._store.url):
                _, synced = await pipeline.execute()
        except InternalError:
            return False  # a server without WAITAOF: the object stays where it is
        return bool(synced[0])


def _folder(name: str) -> str:
    """A name as a folder; a long one, which the record of its tree has whole, by its digest."""
    quoted = keys.quoted(name)
    return quoted if len(quoted) <= _FOLDER_MAX else blake2b(name.encode(), digest_size=16).hexdigest()
