"""Values that grow, stored as pieces: what a new version shares with the one before is not stored again.

A message list that grows by one message a step would be stored whole each step (quadratic); as a rope each version
stores its new tail and now and then merges the newest pieces into one, so that a value of n appends has O(log n)
pieces and each byte is stored O(log n) times. Pure: bytes in, bytes and places out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

FANOUT: Final = 8
"""Pieces of one size class that are merged into one."""
_ARRAY_16, _ARRAY_32 = 0xDC, 0xDD


class Piece(NamedTuple):
    """Bytes at an offset of the blob of a node; node 0 is the blob that is being written."""

    node: int
    offset: int
    length: int


class Rope(NamedTuple):
    """A stored value: its serializer's type, the head of a msgpack array (its count changes), and the rest."""

    kind: str
    head: bytes
    pieces: tuple[Piece, ...]

    def nodes(self) -> set[int]:
        """Nodes whose blobs hold it."""
        return {piece.node for piece in self.pieces}

    def body(self, blobs: Mapping[int, bytes]) -> bytes:
        """Everything but the head."""
        return b"".join(blobs[p.node][p.offset : p.offset + p.length] for p in self.pieces)


class Body(Protocol):
    """Everything of a value but its head; bytes are one."""

    def __len__(self) -> int: ...

    def __getitem__(self, span: slice, /) -> bytes: ...


class Value(NamedTuple):
    """A version to be stored; `same` of its body's bytes begin it as they began the version before."""

    kind: str
    head: bytes
    body: Body
    same: int


def head_length(kind: str, data: bytes) -> int:
    """Bytes of `data` that hold the count of a msgpack array (specification: fixarray, array 16, array 32); else 0."""
    if kind != "msgpack" or not data:
        return 0
    if data[0] >> 4 == 0x9:
        return 1
    return {_ARRAY_16: 3, _ARRAY_32: 5}.get(data[0], 0)


def common_prefix(one: bytes, other: bytes) -> int:
    """Bytes that both begin with."""
    if one.startswith(other) or other.startswith(one):  # the common case, without a copy
        return min(len(one), len(other))
    low, high = 0, min(len(one), len(other))
    while high - low > 1:  # the first difference lies in [low, high)
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def shared(pieces: Iterable[Piece], prefix: int, length: int) -> tuple[Piece, ...]:
    """The pieces of the version before that a new one of `length` bytes keeps, of the `prefix` that both share."""
    kept: list[Piece] = []
    for piece in pieces:
        if prefix <= 0:
            break
        kept.append(piece._replace(length=min(piece.length, prefix)))
        prefix -= kept[-1].length
    tail = length - sum(piece.length for piece in kept)
    while tail:
        run = 0
        while run < len(kept) and kept[-1 - run].length < FANOUT * tail:
            run += 1
        if run < FANOUT:
            break
        tail += sum(piece.length for piece in kept[-run:])
        del kept[-run:]
    return tuple(kept)


class Blob:
    """New bytes of one write, and where they will lie once they are cut into chunks."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def add(self, data: bytes) -> tuple[Piece, ...]:
        """Append bytes; no piece where there is none."""
        if not data:
            return ()
        self._parts.append(data)
        self.size += len(data)
        return (Piece(0, self.size - len(data), len(data)),)

    def chunks(self, size: int) -> list[bytes]:
        """Everything, in chunks of at most `size` bytes."""
        whole = b"".join(self._parts)
        return [whole[at : at + size] for at in range(0, len(whole), size)]


def placed(pieces: Iterable[Piece], nodes: Sequence[int], size: int) -> tuple[Piece, ...]:
    """`pieces` with those of node 0 at the nodes that took the chunks of `size` bytes."""
    found: list[Piece] = []
    for piece in pieces:
        if piece.node:
            found.append(piece)
            continue
        at, end = piece.offset, piece.offset + piece.length
        while at < end:
            upto = min(end, (at // size + 1) * size)
            found.append(Piece(nodes[at // size], at % size, upto - at))
            at = upto
    return tuple(found)


def plain(kind: str, data: bytes, before: Body | None) -> Value:
    """What a serializer made, after a version whose body was `before`."""
    cut = head_length(kind, data)
    return Value(kind, data[:cut], data[cut:], 0 if before is None else common_prefix(before[:], data[cut:]))


def extended(value: Value, blob: Blob, before: Rope | None = None) -> Rope:
    """`value` as a rope that shares what it can with the version before; what is new goes into `blob`."""
    kept: tuple[Piece, ...] = ()
    if before is not None and before.kind == value.kind:
        kept = shared(before.pieces, value.same, len(value.body))
    return Rope(value.kind, value.head, kept + blob.add(value.body[sum(piece.length for piece in kept) :]))
