"""What a MemoryStore says: which server keeps the trees, what a write promises, and what its deletion deletes.

A store is one database of one server (`server_of`): stores that name the same one keep their trees together.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, ClassVar
from urllib.parse import parse_qs, urlsplit

from katsura.domain.units import MIB
from katsura.manifests.rules import Invariant, Rule

RedisUrl = Annotated[
    str,
    Rule(
        "where the server is",
        8,
        1024,
        r"(rediss?|valkeys?|unix)://.+",
        "an address such as redis://host:6379/0, rediss://host:6380 or unix:///run/valkey.sock",
    ),
]
"""Address of a Redis or Valkey server."""


class Durability(StrEnum):
    """What an acknowledged write promises."""

    STRICT = "strict"
    """On disk, or at the replicas that are to confirm it, before the answer."""
    RELAXED = "relaxed"
    """Survives the death of any process; a power cut may lose the last second."""
    CACHE = "cache"
    """May be gone after a restart."""


class DeletionPolicy(StrEnum):
    """What becomes of the data of a store that is deleted from a cluster."""

    RETAIN = "Retain"
    """It stays where it is."""
    DELETE = "Delete"
    """Trees, blocks, tasks and what is counted of them are deleted first; tenants and their API keys stay."""


@dataclass(frozen=True, slots=True)
class RedisSpec:
    """A server of somebody else's."""

    url: RedisUrl
    replicas: Annotated[
        int,
        Rule("replicas of the server that confirm a write before it is answered; 0 relies on its own disk", 0, 16),
    ] = 0


@dataclass(frozen=True, slots=True)
class HintsSpec:
    """A server of its own for what can be rebuilt: indexes, tables, queues. It may evict."""

    redis: RedisSpec | None = None
    bytes: Annotated[int, Rule("memory of the embedded server, after which it evicts", MIB, 1 << 44, quantity=True)] = (
        256 * MIB
    )


@dataclass(frozen=True, slots=True)
class ArchiveSpec:
    """Where cold trees go: a volume that all memory pods of the store share; a local run has a folder of its own."""

    pvc: Annotated[
        str,
        Rule(
            "a PersistentVolumeClaim of the same namespace",
            1,
            253,
            r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?",
            "a name of a-z 0-9 - . that begins and ends with a letter or a digit",
        ),
    ]
    after_seconds: Annotated[
        int, Rule("trees that nobody needed for so long go there; 0: only those that a client sends", 0, 1 << 31)
    ] = 0


@dataclass(frozen=True, slots=True)
class MemoryStoreSpec:
    """Where trees are kept. Without `redis` the platform brings its own server, without `hints` one plays both."""

    durability: Durability = Durability.STRICT
    redis: RedisSpec | None = None
    hints: HintsSpec | None = None
    replicas: Annotated[int, Rule("memory processes", 1, 64)] = 1
    archive: ArchiveSpec | None = None
    deletion_policy: DeletionPolicy = DeletionPolicy.RETAIN

    INVARIANTS: ClassVar[tuple[Invariant, ...]] = (
        Invariant(
            "hints.redis.url",
            lambda spec: not (spec.redis and spec.hints and spec.hints.redis) or spec.redis.url != spec.hints.redis.url,
            "is the durable server itself; leave hints out, then one server plays both",
            "!has(self.redis) || !has(self.hints) || !has(self.hints.redis) || self.redis.url != self.hints.redis.url",
        ),
    )


def server_of(url: str) -> str:
    """Which database of which server a URL names, without who asks and how: `host:port/db`, or `path/db`.

    Equal texts are one database. Two names of one machine are not seen through; what is no URL is its own text, without
    who asks.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        return url.rpartition("@")[2]
    query = parse_qs(parts.query)
    if parts.scheme == "unix":
        return f"{parts.path}/{query.get('db', ['0'])[0]}"
    database = query.get("db", [parts.path.strip("/") or "0"])[0]
    return f"{parts.hostname}:{port}/{database}"
