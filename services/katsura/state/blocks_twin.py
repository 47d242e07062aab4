"""Blocks in memory: the twin of `blocks_redis`, under the same contract suite. Its clock is moved by the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from katsura.domain.blocks import Block, BlockOwner, Content
from katsura.domain.ids import TenantId
from katsura.domain.trees import Request
from katsura.domain.usage import Usage
from katsura.state.blocks import (
    BLOCKS_MAX,
    HISTORY_MAX,
    LOOKS_MAX,
    BlockPage,
    block_refusal,
    payload_of,
)
from katsura.state.usage import Count, uncounted

T = TypeVar("T")


@dataclass(slots=True)
class _Owned:
    """The blocks of one owner: versions by name, oldest first, and when each name expires (0: never)."""

    versions: dict[str, list[Block]] = field(default_factory=dict)
    expires: dict[str, int] = field(default_factory=dict)
    replays: dict[str, tuple[str, object]] = field(default_factory=dict)


class TwinBlockStore:
    """Blocks of all tenants in one dictionary.

    Args:
        replays: requests per owner whose answers are remembered.
        count: is told what each write added.
    """

    def __init__(self, replays: int, count: Count = uncounted) -> None:
        self._replays = replays
        self._count = count
        self._owners: dict[BlockOwner, _Owned] = {}
        self.now_ms = 1

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
        owned = self._owners.setdefault(owner, _Owned())
        if (seen := self._seen(owned, name, request)) is not None:
            assert isinstance(seen, Block)
            return seen
        old, before = self._alive(owned, name), _taken(owned)
        self._compare(name, old, expected_version)
        if old is None and sum(self._alive(owned, other) is not None for other in owned.versions) >= BLOCKS_MAX:
            raise block_refusal(name, "TOO_MANY_BLOCKS")
        self._purge(owned)
        versions = owned.versions.setdefault(name, [])
        owned.expires[name] = self.now_ms + ttl_ms if ttl_ms else 0
        if old is None or old.content != content:
            created = versions[0].create_ms if versions else self.now_ms
            number = versions[-1].version + 1 if versions else 1
            versions.append(Block(name, content, number, created, self.now_ms))
            del versions[:-HISTORY_MAX]
        self._count(owner.tenant, _less(_taken(owned), before))
        return self._remember(owned, request, versions[-1])

    def taken(self, tenant: TenantId) -> Usage:
        """What the blocks of all owners take."""
        return sum((_taken(owned) for owner, owned in self._owners.items() if owner.tenant == tenant), start=Usage())

    async def get(self, owner: BlockOwner, name: str) -> Block:
        """The newest version."""
        found = self._alive(self._owners.get(owner, _Owned()), name)
        if found is None:
            raise block_refusal(name, "BLOCK_NOT_FOUND")
        return found

    async def delete(
        self, owner: BlockOwner, name: str, expected_version: int | None, forget: bool, request: Request
    ) -> bool:
        """Take a value away."""
        owned = self._owners.setdefault(owner, _Owned())
        if (seen := self._seen(owned, name, request)) is not None:
            return bool(seen)
        old, before = self._alive(owned, name), _taken(owned)
        self._compare(name, old, expected_version)
        if forget:
            owned.versions.pop(name, None)
            owned.expires.pop(name, None)
        elif old is not None:
            gone = replace(old, content=Content(b""), version=old.version + 1, update_ms=self.now_ms, deleted=True)
            owned.versions[name].append(gone)
            del owned.versions[name][:-HISTORY_MAX]
            owned.expires[name] = 0
        self._count(owner.tenant, _less(_taken(owned), before))
        return self._remember(owned, request, old is not None)

    async def page(
        self, owner: BlockOwner, prefix: str, words: Sequence[bytes], after: str, page_size: int, bytes_max: int
    ) -> BlockPage:
        """A page of blocks by name."""
        owned = self._owners.get(owner, _Owned())
        kept = {name.encode(): name for name, versions in owned.versions.items() if not versions[-1].deleted}
        names = [kept[key] for key in sorted(kept) if key.startswith(prefix.encode()) and key > after.encode()]
        found: list[Block] = []
        last = ""
        for looks, name in enumerate(names):
            if looks == LOOKS_MAX or len(found) == page_size:
                return BlockPage(tuple(found), last)
            block = self._alive(owned, name)
            text = (name.encode() + b"\n" + block.content.value).lower() if block else b""
            if block is not None and all(word in text for word in words):
                bytes_max -= len(payload_of(block.content)) + 40
                if bytes_max < 0 and found:
                    return BlockPage(tuple(found), last)
                found.append(block)
            last = name
        return BlockPage(tuple(found), "")

    async def history(self, owner: BlockOwner, name: str) -> tuple[Block, ...]:
        """The versions that are kept, newest first."""
        owned = self._owners.get(owner, _Owned())
        if self._expired(owned, name):
            return ()
        return tuple(reversed(owned.versions.get(name, [])))

    def _expired(self, owned: _Owned, name: str) -> bool:
        return 0 < owned.expires.get(name, 0) <= self.now_ms

    def _alive(self, owned: _Owned, name: str) -> Block | None:
        versions = owned.versions.get(name)
        return None if not versions or versions[-1].deleted or self._expired(owned, name) else versions[-1]

    def _purge(self, owned: _Owned) -> None:
        for name in [name for name in owned.versions if self._expired(owned, name)]:
            del owned.versions[name]
            del owned.expires[name]

    def _compare(self, name: str, old: Block | None, expected: int | None) -> None:
        version = old.version if old is not None else 0
        if expected is not None and expected != version:
            raise block_refusal(name, "VERSION_MOVED", str(version))

    def _seen(self, owned: _Owned, name: str, request: Request) -> object:
        digest, answer = owned.replays.get(request.request_id, (request.digest, None))
        if digest != request.digest:
            raise block_refusal(name, "REQUEST_ID_REUSED")
        return answer

    def _remember(self, owned: _Owned, request: Request, answer: T) -> T:
        if request.request_id:
            owned.replays[request.request_id] = (request.digest, answer)
            if len(owned.replays) > self._replays:
                owned.replays.pop(next(iter(owned.replays)))
        return answer


def _taken(owned: _Owned) -> Usage:
    """What one owner takes, as it is stored."""
    size = sum(_size(block, owned.expires.get(name, 0)) for name, kept in owned.versions.items() for block in kept)
    return Usage(bytes=size, blocks=sum(not kept[-1].deleted for kept in owned.versions.values()))


def _size(block: Block, expires_ms: int) -> int:
    head = f"{block.version} {block.create_ms} {block.update_ms} {expires_ms} {int(block.deleted)}"
    return len(head) + 1 + (0 if block.deleted else len(payload_of(block.content)))


def _less(usage: Usage, other: Usage) -> Usage:
    return Usage(bytes=usage.bytes - other.bytes, blocks=usage.blocks - other.blocks)
