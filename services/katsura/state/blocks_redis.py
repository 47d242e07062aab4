"""Blocks in Valkey or Redis: one function call per operation (functions/blocks.lua)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from katsura.domain.blocks import Block, BlockOwner, Content
from katsura.domain.trees import Request
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.blocks import (
    BLOCKS_MAX,
    HISTORY_MAX,
    LOOKS_MAX,
    BlockPage,
    block_of,
    block_refusal,
    payload_of,
)
from katsura.state.connect import Arg, Library, Store, translated
from katsura.state.usage import Count, uncounted

_INDEXED_MAX: Final = 65536
BLOCK_FUNCTIONS: Final = Library.read("blocks")
"""Load it with `Store.open(libraries=[...])`."""
_PARTS: Final = ("values", "names", "history", "expiry", "replays", "order", "bytes")


class RedisBlockStore:
    """Blocks of all tenants in one store.

    Args:
        replays: requests per owner whose answers are remembered.
        count: is told what each write added.
    """

    def __init__(self, store: Store, replays: int, count: Count = uncounted) -> None:
        self._store = store
        self._replays = replays
        self._count = count
        self._indexed: set[BlockOwner] = set()

    async def put(
        self,
        owner: BlockOwner,
        name: str,
        content: Content,
        expected_version: int | None,
        ttl_ms: int,
        request: Request,
    ) -> Block:
        """Write a new version."""
        head = self._head(name, expected_version, request)
        answer = await self._call(owner, "put", name, *head, payload_of(content), ttl_ms, BLOCKS_MAX)
        await self._index(owner)
        self._added(owner, answer)
        return block_of(name, answer[1])

    async def get(self, owner: BlockOwner, name: str) -> Block:
        """The newest version."""
        answer = await self._call(owner, "get", name, name, read_only=True)
        return block_of(name, answer[1])

    async def delete(
        self, owner: BlockOwner, name: str, expected_version: int | None, forget: bool, request: Request
    ) -> bool:
        """Take a value away."""
        head = self._head(name, expected_version, request)
        answer = await self._call(owner, "delete", name, *head, int(forget))
        self._added(owner, answer)
        return bool(answer[1] == b"1")

    async def page(
        self, owner: BlockOwner, prefix: str, words: Sequence[bytes], after: str, page_size: int, bytes_max: int
    ) -> BlockPage:
        """A page of blocks by name."""
        limits = (page_size, LOOKS_MAX, bytes_max)
        answer = await self._call(owner, "list", "", prefix, after, *limits, *words, read_only=True)
        pairs = zip(answer[2::2], answer[3::2], strict=True)
        return BlockPage(tuple(block_of(name.decode(), stored) for name, stored in pairs), answer[1].decode())

    async def history(self, owner: BlockOwner, name: str) -> tuple[Block, ...]:
        """The versions that are kept, newest first."""
        answer = await self._call(owner, "history", name, name, HISTORY_MAX, read_only=True)
        return tuple(block_of(name, stored) for stored in answer[1:])

    async def _index(self, owner: BlockOwner) -> None:
        """Note who has blocks, once per process."""
        if owner not in self._indexed:
            with translated(self._store.url):
                name = f"{owner.scope.name.lower()}:{owner.owner}"
                await self._store.client.sadd(keys.block_owners(owner.tenant), name)
            if len(self._indexed) >= _INDEXED_MAX:
                self._indexed.clear()
            self._indexed.add(owner)

    def _added(self, owner: BlockOwner, answer: Sequence[Any]) -> None:
        if len(answer) > 2:
            self._count(owner.tenant, Usage(bytes=answer[2], blocks=answer[3]))

    def _head(self, name: str, expected: int | None, request: Request) -> tuple[Arg, ...]:
        version = -1 if expected is None else expected
        return (self._replays, request.request_id, request.digest, HISTORY_MAX, name, version)

    async def _call(
        self, owner: BlockOwner, function: str, name: str, *arguments: Arg, read_only: bool = False
    ) -> list[Any]:
        names = [keys.blocks(owner.tenant, owner.scope.name.lower(), owner.owner, part) for part in _PARTS]
        answer: list[Any] = await self._store.call(BLOCK_FUNCTIONS, function, names, arguments, read_only=read_only)
        if answer[0] != b"OK":
            raise block_refusal(name, *(part.decode() if isinstance(part, bytes) else str(part) for part in answer))
        return answer
