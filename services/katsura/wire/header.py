"""The 64 bytes that every frame begins with, and the control frames that are a header and a JSON body.

    0 magic u16 | 2 version u8 | 3 kind u8 | 4 flags u8 | 5 dtype u8 | 6 layer u16
    8 ubatch u16 | 10 n_groups u16 | 12 n_tokens u32 | 16 n_routes u32 | 20 width u32
    24 incarnation u64 | 32 step u64 | 40 weights digest, first 8 bytes
    48 epoch u32 | 52 time_us u32 | 56 body_len u32 | 60 CRC-32 of bytes 0..59

All little endian. What a peer wrote is never trusted: a header is read once, into Python integers, and only those are
checked and used, so a peer that goes on writing into shared memory cannot change what has been checked.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from katsura.domain.errors import InvalidArgumentError, Reason

HEADER_BYTES = 64
ALIGN_BYTES = 64
CONTROL_BYTES_MAX = 64 * 1024
"""Longest control frame: a HELLO, WELCOME or NACK is never a way to make a peer allocate."""
DIGEST_BYTES = 8
WIRE_VERSION = 1
"""Version of the frame. Part of a revision's name: shards and members of two versions never meet."""

_MAGIC = 0x574B
LAYOUT = struct.Struct("<HBBBBHHHIIIQQ8sIIII")
"""The header's fields: magic, version, those of `Header` in its order, checksum."""
CHECKSUM = struct.Struct("<I")
CHECKED_BYTES = HEADER_BYTES - CHECKSUM.size
"""The checksum covers the bytes before it."""


class BadFrameError(InvalidArgumentError):
    """Bytes that are not a frame, or one that contradicts itself. The channel it came from is not to be trusted."""

    default_reason = Reason.BAD_FRAME


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    WELCOME = 2
    DISPATCH = 3
    PARTIAL = 4
    NACK = 5


class Flag(IntEnum):
    """Bits of `Header.flags`."""

    REPLAY = 1
    """This identity may have been posted before, here or to another member."""
    UNIFORM = 2
    """Every token goes to every unit of every listed group with weight 1 (a dense FFN): there are no routes."""
    TRACED = 4
    """A trace-context section follows the header."""


_FLAGS = Flag.REPLAY | Flag.UNIFORM | Flag.TRACED
_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """Fields of the header; the meaning of the counts depends on `kind` (see `frame`).

    `time_us`: in a DISPATCH what is left until the client's deadline, in a PARTIAL how long the member had the frame.
    `n_routes`: (row, unit) pairs of a DISPATCH, rows of partial sums of a PARTIAL; 0 where the frame is UNIFORM.
    """

    kind: Kind
    flags: int = 0
    dtype: int = 0
    layer: int = 0
    ubatch: int = 0
    n_groups: int = 0
    n_tokens: int = 0
    n_routes: int = 0
    width: int = 0
    incarnation: int = 0
    step: int = 0
    digest: bytes = bytes(DIGEST_BYTES)
    epoch: int = 0
    time_us: int = 0
    body_len: int = 0


class NackReason(StrEnum):
    """Why a member gives a frame back undone."""

    STALE_EPOCH = "STALE_EPOCH"
    NOT_LOADED = "NOT_LOADED"
    OVERLOADED = "OVERLOADED"
    DRAINING = "DRAINING"
    WRONG_WEIGHTS = "WRONG_WEIGHTS"
    EXPIRED = "EXPIRED"
    MALFORMED = "MALFORMED"
    """The frame decoded, but asks for what this model has not (or it did not decode at all)."""
    REFUSED = "REFUSED"
    """The answer to a HELLO that is not welcome."""


def aligned(count: int) -> int:
    """`count` rounded up to the next section boundary."""
    return (count + ALIGN_BYTES - 1) & -ALIGN_BYTES


def write_header(buffer: memoryview, header: Iterable[Any]) -> None:
    """Write the fields of a `Header`, in its order, and their checksum into the first 64 bytes of `buffer`."""
    LAYOUT.pack_into(buffer, 0, _MAGIC, WIRE_VERSION, *header, 0)
    CHECKSUM.pack_into(buffer, CHECKED_BYTES, zlib.crc32(buffer[:CHECKED_BYTES]))


def read_header(buffer: memoryview) -> Header:
    """The header of the frame that fills `buffer` exactly. Raises BadFrameError."""
    if len(buffer) < HEADER_BYTES:
        raise BadFrameError(f"a frame of {len(buffer)} bytes is shorter than its {HEADER_BYTES}-byte header")
    checksum = zlib.crc32(buffer[:CHECKED_BYTES])
    magic, version, kind, *fields, written = LAYOUT.unpack_from(buffer, 0)
    if magic != _MAGIC or version != WIRE_VERSION:
        raise BadFrameError(f"not a frame of version {WIRE_VERSION}: magic {magic:#06x}, version {version}")
    if written != checksum:
        raise BadFrameError("the header's checksum does not match its fields")
    if kind not in _KINDS:
        raise BadFrameError(f"frames of kind {kind} do not exist")
    header = Header(_KINDS[kind], *fields)
    if header.flags & ~_FLAGS:
        raise BadFrameError(f"unknown flags {header.flags:#04x}")
    if header.body_len != len(buffer) - HEADER_BYTES:
        raise BadFrameError(f"the header announces {header.body_len} bytes, {len(buffer) - HEADER_BYTES} follow it")
    return header


def write_control(buffer: memoryview, kind: Kind, body: Mapping[str, Any], answered: Header | None = None) -> int:
    """Write a control frame, carrying the identity of the frame that it answers. Returns its length in bytes."""
    text = json.dumps(body, separators=(",", ":")).encode()
    if HEADER_BYTES + len(text) > min(len(buffer), CONTROL_BYTES_MAX):
        raise BadFrameError(f"a {kind.name} body of {len(text)} bytes does not fit")
    header = (
        Header(kind)
        if answered is None
        else Header(
            kind,
            layer=answered.layer,
            ubatch=answered.ubatch,
            incarnation=answered.incarnation,
            step=answered.step,
        )
    )
    buffer[HEADER_BYTES : HEADER_BYTES + len(text)] = text
    write_header(buffer, header._replace(body_len=len(text)))
    return HEADER_BYTES + len(text)


def control(kind: Kind, body: Mapping[str, Any]) -> bytes:
    """A control frame that answers nothing, as bytes."""
    buffer = bytearray(CONTROL_BYTES_MAX)
    return bytes(buffer[: write_control(memoryview(buffer), kind, body)])


def read_control(buffer: memoryview, header: Header) -> dict[str, Any]:
    """The JSON body of a control frame. Raises BadFrameError."""
    if header.body_len > CONTROL_BYTES_MAX:
        raise BadFrameError(f"a {header.kind.name} of {header.body_len} bytes is too long")
    try:
        body = json.loads(bytes(buffer[HEADER_BYTES:]))
    except (ValueError, RecursionError) as error:
        raise BadFrameError(f"the body of a {header.kind.name} is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadFrameError(f"the body of a {header.kind.name} is not a JSON object")
    return body
