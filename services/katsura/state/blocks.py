"""The store of blocks: named values per agent, user or tenant, versioned, with the last versions kept.

The memory service calls it. `RedisBlockStore` keeps them in Valkey or Redis, `TwinBlockStore` in memory; one contract
suite covers both. Reasons of refusal:

    NotFoundError           BLOCK_NOT_FOUND
    ConflictError           VERSION_MOVED: metadata "version" is the block's version now, 0 where there is none
    AlreadyExistsError      REQUEST_ID_REUSED
    ResourceExhaustedError  the owner has BLOCKS_MAX blocks
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from katsura.domain.blocks import Block, BlockOwner, Content
from katsura.domain.errors import (
    AlreadyExistsError,
    ConflictError,
    InternalError,
    KatsuraError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
)
from katsura.domain.trees import Request

HISTORY_MAX: Final = 32
"""Versions of a block that are kept."""
BLOCKS_MAX: Final = 100_000
"""Blocks of one owner."""
LOOKS_MAX: Final = 1024
"""Blocks that one call of `page` looks at."""


@dataclass(frozen=True, slots=True)
class BlockPage:
    """Blocks by name, and the name after which the next page begins ("" at the end)."""

    blocks: tuple[Block, ...]
    next_after: str


class BlockStore(Protocol):
    """Blocks of all tenants. What has expired is not there, and its bytes go with the next writes to its owner."""

    async def put(
        self,
        owner: BlockOwner,
        name: str,
        content: Content,
        expected_version: int | None,
        ttl_ms: int,
        request: Request,
    ) -> Block:
        """Write a new version; what is there already is left alone, but for its time to live."""
        ...

    async def get(self, owner: BlockOwner, name: str) -> Block:
        """The newest version. Raises BLOCK_NOT_FOUND, also for one that was deleted."""
        ...

    async def delete(
        self, owner: BlockOwner, name: str, expected_version: int | None, forget: bool, request: Request
    ) -> bool:
        """Take a value away, and its history too with `forget`; whether there was a value."""
        ...

    async def page(
        self, owner: BlockOwner, prefix: str, words: Sequence[bytes], after: str, page_size: int, bytes_max: int
    ) -> BlockPage:
        """Blocks whose name begins with `prefix` and whose name or value holds every word (ASCII in lower case)."""
        ...

    async def history(self, owner: BlockOwner, name: str) -> tuple[Block, ...]:
        """The versions that are kept, newest first; empty for a name that was never written."""
        ...


def payload_of(content: Content) -> bytes:
    """A content as it is stored: size of its head in six digits of hexadecimal, head (JSON), value."""
    fields = [content.media_type, dict(content.attributes)]
    head = json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    return b"%06x" % len(head) + head + content.value


def content_of(payload: bytes) -> Content:
    """The way back from `payload_of`."""
    size = int(payload[:6], 16)
    media_type, attributes = json.loads(payload[6 : 6 + size])
    return Content(payload[6 + size :], media_type, attributes)


def block_of(name: str, stored: bytes) -> Block:
    """A version from its stored form: `<version> <created> <updated> <expires> <deleted>\\n<payload>`."""
    head, _, payload = stored.partition(b"\n")
    version, created, updated, _, deleted = map(int, head.split())
    content = Content(b"") if deleted else content_of(payload)
    return Block(name, content, version, created, updated, bool(deleted))


def block_refusal(name: str, reason: str, detail: str = "") -> KatsuraError:
    """The error for a store function's answer `{reason, detail}`."""
    match reason:
        case "BLOCK_NOT_FOUND":
            return NotFoundError(f"there is no block {name!r}", reason=Reason.BLOCK_NOT_FOUND, field="name")
        case "VERSION_MOVED":
            text = f"block {name!r} is at version {detail} now; read it again, then decide"
            return ConflictError(text, reason=Reason.VERSION_MOVED, metadata={"version": detail})
        case "REQUEST_ID_REUSED":
            text = "request_id was used before with another body; make a new one for a new request"
            return AlreadyExistsError(text, reason=Reason.REQUEST_ID_REUSED, field="request_id")
        case "TOO_MANY_BLOCKS":
            return ResourceExhaustedError(f"the owner has {BLOCKS_MAX} blocks already; delete some", field="owner")
    return InternalError(f"the store answered {reason} {detail}")
