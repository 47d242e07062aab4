"""Blocks: the long-term side of memory. Checks what is asked for; the store keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from katsura.domain.blocks import Block, BlockOwner, BlockScope, Content
from katsura.domain.trees import request_of
from katsura.domain.units import KIB
from katsura.memory.core import limits
from katsura.memory.core.search import lower, words_of
from katsura.memory.operations import ID_MAX, committing
from katsura.state.blocks import BlockPage, BlockStore

NAME_BYTES_MAX: Final = 512
VALUE_BYTES_MAX: Final = 256 * KIB
_TEXT: Final = "text/plain"


class Blocks:
    """Blocks of all tenants."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    async def put(
        self,
        owner: BlockOwner,
        request_id: str,
        name: str,
        content: Content,
        expected_version: int | None,
        ttl_s: int,
    ) -> Block:
        """Write a value as a new version; what is there already changes nothing."""
        _check(owner, request_id, name, expected_version)
        limits.check_range(ttl_s, "ttl_s", 0, limits.TTL_S_MAX)
        limits.check_range(len(content.value), "value", 0, VALUE_BYTES_MAX)
        limits.check_text(content.media_type, "media_type")
        limits.check_map(content.attributes, "attributes")
        content = content if content.media_type else Content(content.value, _TEXT, content.attributes)
        request = request_of(request_id, "put", name, content, expected_version, ttl_s)
        with committing("put_block"):
            return await self._store.put(owner, name, content, expected_version, ttl_s * 1000, request)

    async def get(self, owner: BlockOwner, name: str) -> Block:
        """The newest version of a value."""
        _check(owner, "", name, None)
        return await self._store.get(owner, name)

    async def delete(
        self, owner: BlockOwner, request_id: str, name: str, expected_version: int | None, forget: bool
    ) -> bool:
        """Take a value away, and its history too with `forget`; whether there was one."""
        _check(owner, request_id, name, expected_version)
        request = request_of(request_id, "delete", name, expected_version, forget)
        with committing("delete_block"):
            return await self._store.delete(owner, name, expected_version, forget, request)

    async def page(
        self, owner: BlockOwner, prefix: str, attributes: Mapping[str, str], query: str, size: int, token: str
    ) -> BlockPage:
        """Blocks by name that carry all of the attributes and say every word."""
        _check_owner(owner)
        limits.check_text(prefix, "prefix", NAME_BYTES_MAX)
        limits.check_text(token, "page_token", NAME_BYTES_MAX)
        limits.check_text(query, "query")
        limits.check_map(attributes, "attributes")
        words = [lower(word).encode() for word in words_of(query)]
        size = limits.page_size(size)
        page = await self._store.page(owner, prefix, words, token, size, limits.ANSWER_BYTES_MAX)
        kept = (b for b in page.blocks if all(b.content.attributes.get(k) == v for k, v in attributes.items()))
        return BlockPage(tuple(kept), page.next_after)

    async def history(self, owner: BlockOwner, name: str) -> tuple[Block, ...]:
        """The versions that are kept, newest first, as many as fit an answer."""
        _check(owner, "", name, None)
        left, fitting = limits.ANSWER_BYTES_MAX, []
        for block in await self._store.history(owner, name):
            left -= len(block.content.value)
            if left < 0:
                break
            fitting.append(block)
        return tuple(fitting)


def _check_owner(owner: BlockOwner) -> None:
    if owner.scope is BlockScope.UNSPECIFIED:
        raise limits.refuse("owner.scope", "say whose: AGENT, USER or TENANT")
    if (owner.scope is BlockScope.TENANT) == bool(owner.owner):
        raise limits.refuse("owner.owner", "AGENT and USER name their owner, TENANT has none")
    limits.check_text(owner.owner, "owner.owner", NAME_BYTES_MAX)


def _check(owner: BlockOwner, request_id: str, name: str, expected_version: int | None) -> None:
    _check_owner(owner)
    limits.check_text(request_id, "request_id")
    limits.check_text(name, "name", NAME_BYTES_MAX)
    if not name or any(ord(c) < 32 for c in name):
        raise limits.refuse("name", "it is empty, or holds a control character")
    if expected_version is not None:
        limits.check_range(expected_version, "expected_version", 0, ID_MAX)
