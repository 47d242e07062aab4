"""What a shard tells about its KV pages, so that a router knows where a prefix lies.

A shard numbers its batches 1, 2, 3 ... within one incarnation. A reader that sees the next number applies the batch,
one that sees a gap takes the shard's snapshot, and a new incarnation starts empty. Page hashes are salted by tenant
(`katsura.domain.pages`), so events name nobody's text.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from katsura.domain.errors import DataLossError
from katsura.domain.ids import Incarnation
from katsura.domain.pages import PAGE_HASH_BYTES


@dataclass(frozen=True, slots=True)
class KvStored:
    """Pages committed, each following the one before it; `parent` precedes the first, empty at a prompt's start."""

    parent: bytes
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KvRemoved:
    """Pages evicted or dropped."""

    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class KvCleared:
    """Every page is gone."""


KvEvent = KvStored | KvRemoved | KvCleared


@dataclass(frozen=True, slots=True)
class KvBatch:
    """Events of one step, in order; `sequence` counts batches from 1 within `incarnation`."""

    incarnation: Incarnation
    sequence: int
    events: tuple[KvEvent, ...]


@dataclass(frozen=True, slots=True)
class KvSnapshot:
    """All pages that a shard holds after batch `sequence` (0: before the first)."""

    incarnation: Incarnation
    sequence: int
    hashes: tuple[bytes, ...]


_HEAD = struct.Struct("<BI")
_NO_PARENT = bytes(PAGE_HASH_BYTES)


def pack_events(events: tuple[KvEvent, ...]) -> bytes:
    """Events as bytes: per event `u8 op, u32 n`, then n hashes of 16 bytes (STORED: the parent first, zero if none)."""
    out = bytearray()
    for event in events:
        match event:
            case KvStored(parent, hashes):
                out += _HEAD.pack(1, len(hashes) + 1) + (parent or _NO_PARENT) + b"".join(hashes)
            case KvRemoved(hashes):
                out += _HEAD.pack(2, len(hashes)) + b"".join(hashes)
            case KvCleared():
                out += _HEAD.pack(3, 0)
    return bytes(out)


def unpack_events(data: bytes) -> tuple[KvEvent, ...]:
    """The inverse of `pack_events`. Raises DataLossError where the bytes are no such list."""
    events: list[KvEvent] = []
    at = 0
    while at < len(data):
        op, count = _HEAD.unpack_from(data, at) if at + _HEAD.size <= len(data) else (0, 0)
        at += _HEAD.size
        end = at + count * PAGE_HASH_BYTES
        if op not in (1, 2, 3) or end > len(data) or (op == 1 and count < 1):
            raise DataLossError(
                f"KV events end in the middle or hold operation {op}; the shard must publish a snapshot"
            )
        hashes = unpack_hashes(data[at:end])
        if op == 1:
            events.append(KvStored(b"" if hashes[0] == _NO_PARENT else hashes[0], hashes[1:]))
        else:
            events.append(KvRemoved(hashes) if op == 2 else KvCleared())
        at = end
    return tuple(events)


def unpack_hashes(data: bytes) -> tuple[bytes, ...]:
    """Page hashes that stand side by side in `data`."""
    if len(data) % PAGE_HASH_BYTES:
        raise DataLossError(f"{len(data)} bytes are not a list of {PAGE_HASH_BYTES}-byte page hashes")
    return tuple(data[i : i + PAGE_HASH_BYTES] for i in range(0, len(data), PAGE_HASH_BYTES))
