"""Blocks: named values that outlive trees, with history. Plain data; numbers of enumerations are those of the API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from katsura.domain.ids import TenantId


class BlockScope(IntEnum):
    """Whose a block is."""

    UNSPECIFIED = 0
    AGENT = 1
    USER = 2
    TENANT = 3


@dataclass(frozen=True, slots=True)
class BlockOwner:
    """Where blocks live. `owner` is an agent or a user, "" for TENANT."""

    tenant: TenantId
    scope: BlockScope
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """What one version of a block holds."""

    value: bytes
    media_type: str = "text/plain"
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Block:
    """One version of a named value. Times are milliseconds since the epoch, by the store's clock.

    Attributes:
        version: counts the writes of this name, deletions included.
        deleted: this version took the value away.
    """

    name: str
    content: Content
    version: int
    create_ms: int
    update_ms: int
    deleted: bool = False
