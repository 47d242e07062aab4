"""DISPATCH and PARTIAL: activations to a member, and its partial sums back.

A frame is the header (see `header`) and sections that each begin on a 64-byte boundary, in this order:

    DISPATCH  trace      64 bytes: W3C traceparent, zero padded              (flag TRACED)
              groups     n_groups x (group u32, end u32)                     ascending by group
              rows       n_routes x i32   row of `hidden`                    (absent if UNIFORM)
              units      n_routes x i32   expert id                          (absent if UNIFORM)
              weights    n_routes x f32   gate weight                        (absent if UNIFORM)
              hidden     n_tokens x width of dtype: each token once, whatever the number of its units
    PARTIAL   groups     n_groups x (group u32, end u32)
              rows       n_routes x i32   row of the DISPATCH                (absent if UNIFORM)
              sums       f32 x width: n_routes rows; if UNIFORM n_groups x n_tokens of them

Routes are sorted by group and, within a group, by row: group i owns routes `[end[i-1], end[i])`, so a token may use any
number of units (ragged k). The identity of a partial sum is (incarnation, step, layer, ubatch, group): who computed
it and at which attempt is no part of it, so a replay is the same frame. `epoch` is the version of the table that the
client sent by, never an incarnation.

Encoders write into a given buffer. Decoders check every size, order and index, then return views of the buffer; the
small integer sections are copied before they are checked, because the peer may still be writing.
"""

from __future__ import annotations

import itertools
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from katsura.wire.header import DIGEST_BYTES, HEADER_BYTES, BadFrameError, Flag, Header, Kind, aligned, write_header

TRACE_BYTES = 64
TIME_US_MAX = 2**32 - 1
"""A deadline further away than this (71 minutes) is sent as this."""

_DTYPES = (torch.float32, torch.bfloat16)
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_GROUP_ENTRY_BYTES = 8

with warnings.catch_warnings():
    # A peer's half of shared memory is mapped read-only. torch warns about that once per process; we only ever read.
    warnings.simplefilter("ignore")
    torch.frombuffer(memoryview(bytes(4)), dtype=torch.float32)


class FrameId(NamedTuple):
    """What a frame is about. With a group id it names one partial sum for ever; attempts do not change it."""

    incarnation: int
    step: int
    layer: int
    ubatch: int


@dataclass(frozen=True, slots=True)
class Routes:
    """Which rows use which units: three arrays [n_routes], sorted by group and then by row.

    Attributes:
        rows: i32, row of `hidden`.
        units: i32, expert id.
        weights: f32, gate weight.
        ends: per group of the frame, where its routes end.
    """

    rows: Tensor
    units: Tensor
    weights: Tensor
    ends: tuple[int, ...]

    def span(self, index: int) -> slice:
        """Routes of the frame's group number `index`."""
        return slice(self.ends[index - 1] if index else 0, self.ends[index])


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A decoded DISPATCH. `hidden` [n_tokens, width] is a view of the frame's buffer; `routes` is None if UNIFORM."""

    header: Header
    groups: tuple[int, ...]
    routes: Routes | None
    hidden: Tensor
    trace: bytes

    @property
    def id(self) -> FrameId:
        """What the frame is about."""
        return _id_of(self.header)

    @property
    def replay(self) -> bool:
        """Whether this identity may have been posted before."""
        return bool(self.header.flags & Flag.REPLAY)


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Partial sums of one group: f32 [n, width] for `rows` (i32 [n]); None stands for all rows in order."""

    group: int
    rows: Tensor | None
    sums: Tensor


@dataclass(frozen=True, slots=True)
class Partial:
    """A decoded PARTIAL. The sums are views of the reply slot: add them before it is released."""

    header: Header
    groups: tuple[int, ...]
    parts: tuple[GroupSums, ...]

    @property
    def id(self) -> FrameId:
        """What the frame is about."""
        return _id_of(self.header)


def dispatch_bytes(n_tokens: int, width: int, dtype: torch.dtype, n_groups: int, n_routes: int, traced: bool) -> int:
    """Length in bytes of the DISPATCH with these counts (`n_routes` 0: UNIFORM)."""
    start = HEADER_BYTES + (TRACE_BYTES if traced else 0) + aligned(n_groups * _GROUP_ENTRY_BYTES)
    return start + 3 * aligned(4 * n_routes) + n_tokens * width * dtype.itemsize


def partial_bytes(n_sums: int, width: int, n_groups: int, uniform: bool) -> int:
    """Length in bytes of the PARTIAL with `n_sums` rows of partial sums over all its groups."""
    rows = 0 if uniform else aligned(4 * n_sums)
    return HEADER_BYTES + aligned(n_groups * _GROUP_ENTRY_BYTES) + rows + 4 * n_sums * width


def encode_dispatch(
    buffer: memoryview,
    id: FrameId,
    groups: Sequence[int],
    hidden: Tensor,
    routes: Routes | None = None,
    *,
    digest: bytes,
    epoch: int,
    deadline_us: int,
    trace: bytes = b"",
    replay: bool = False,
) -> int:
    """Write a DISPATCH; `buffer` must hold `dispatch_bytes`. Returns its length in bytes.

    Args:
        buffer: where to, usually a reserved slot.
        id: what it is about.
        groups: reduction groups asked for, ascending.
        hidden: [n_tokens, width], f32 or bf16.
        routes: None where every token goes to every unit of every group with weight 1.
        digest: weights digest; the first 8 bytes travel.
        epoch: of the table that named this member.
        deadline_us: microseconds until the client no longer wants the answer.
        trace: W3C traceparent, or empty.
        replay: whether this identity may have been posted before.
    """
    n_tokens, width = hidden.shape
    n_routes, ends = (0, (0,) * len(groups)) if routes is None else (len(routes.rows), routes.ends)
    offset = _write_groups(buffer, HEADER_BYTES + (TRACE_BYTES if trace else 0), groups, ends)
    if routes is not None:
        for array in (routes.rows, routes.units, routes.weights):
            offset = _write_array(buffer, offset, array)
    if trace:
        buffer[HEADER_BYTES : HEADER_BYTES + TRACE_BYTES] = trace.ljust(TRACE_BYTES, b"\0")
    _view(buffer, offset, (n_tokens, width), hidden.dtype).copy_(hidden)
    end = offset + n_tokens * width * hidden.element_size()
    flags = (Flag.UNIFORM if routes is None else 0) | (Flag.TRACED if trace else 0) | (Flag.REPLAY if replay else 0)
    write_header(
        buffer,
        (
            Kind.DISPATCH, flags, _DTYPE_CODES[hidden.dtype], id.layer, id.ubatch, len(groups), n_tokens, n_routes,
            width, id.incarnation, id.step, digest[:DIGEST_BYTES], epoch, min(deadline_us, TIME_US_MAX),
            end - HEADER_BYTES,
        ),
    )  # fmt: skip
    return end


def decode_dispatch(buffer: memoryview, header: Header) -> Dispatch:
    """Read the DISPATCH that fills `buffer`, whose header has been read. Raises BadFrameError."""
    traced = bool(header.flags & Flag.TRACED)
    start = HEADER_BYTES + (TRACE_BYTES if traced else 0)
    trace = bytes(buffer[HEADER_BYTES:start]).rstrip(b"\0") if traced else b""
    if header.dtype >= len(_DTYPES):
        raise BadFrameError(f"unknown dtype code {header.dtype}")
    dtype = _DTYPES[header.dtype]
    _check_counts(header)
    _check_length(
        buffer, dispatch_bytes(header.n_tokens, header.width, dtype, header.n_groups, header.n_routes, traced)
    )
    groups, ends, offset = _read_groups(buffer, start, header)
    routes = None
    if not header.flags & Flag.UNIFORM:
        rows, offset = _read_array(buffer, offset, header.n_routes, torch.int32)
        units, offset = _read_array(buffer, offset, header.n_routes, torch.int32)
        weights, offset = _read_array(buffer, offset, header.n_routes, torch.float32)
        _check_rows(rows, ends, header.n_tokens)
        if int(units.min()) < 0 or not bool(torch.isfinite(weights).all()):
            raise BadFrameError("a route has a negative unit or a weight that is no finite number")
        routes = Routes(rows, units, weights, ends)
    return Dispatch(header, groups, routes, _view(buffer, offset, (header.n_tokens, header.width), dtype), trace)


def encode_partial(buffer: memoryview, asked: Dispatch, parts: Sequence[GroupSums], member_us: int) -> int:
    """Write the PARTIAL that answers `asked`: one part per group asked for, in that order. Returns its length.

    `member_us`: how long the member had the frame, waiting included.
    """
    uniform = asked.routes is None
    width = asked.header.width
    counts = [part.sums.shape[0] for part in parts]
    ends = tuple(itertools.accumulate(counts))
    offset = _write_groups(buffer, HEADER_BYTES, asked.groups, (0,) * len(parts) if uniform else ends)
    if not uniform:
        rows = torch.cat([part.rows for part in parts if part.rows is not None])
        offset = _write_array(buffer, offset, rows)
    for part, view in zip(
        parts, torch.split(_view(buffer, offset, (ends[-1], width), torch.float32), counts), strict=True
    ):
        view.copy_(part.sums)
    end = offset + 4 * ends[-1] * width
    header = asked.header
    write_header(
        buffer,
        (
            Kind.PARTIAL, Flag.UNIFORM if uniform else 0, _DTYPE_CODES[torch.float32], header.layer, header.ubatch,
            len(parts), header.n_tokens, 0 if uniform else ends[-1], width,
            header.incarnation, header.step, header.digest, header.epoch, min(member_us, TIME_US_MAX),
            end - HEADER_BYTES,
        ),
    )  # fmt: skip
    return end


def decode_partial(buffer: memoryview, header: Header) -> Partial:
    """Read the PARTIAL that fills `buffer`, whose header has been read. Raises BadFrameError."""
    if header.dtype != _DTYPE_CODES[torch.float32] or header.flags & ~Flag.UNIFORM:
        raise BadFrameError(f"partial sums are f32 and untraced, not dtype {header.dtype} flags {header.flags:#04x}")
    _check_counts(header)
    uniform = bool(header.flags & Flag.UNIFORM)
    n_sums = header.n_groups * header.n_tokens if uniform else header.n_routes
    _check_length(buffer, partial_bytes(n_sums, header.width, header.n_groups, uniform))
    groups, ends, offset = _read_groups(buffer, HEADER_BYTES, header)
    rows = None
    if uniform:
        ends = tuple(header.n_tokens * (index + 1) for index in range(header.n_groups))
    else:
        rows, offset = _read_array(buffer, offset, n_sums, torch.int32)
        _check_rows(rows, ends, header.n_tokens)
    sums = _view(buffer, offset, (n_sums, header.width), torch.float32)
    starts = (0, *ends[:-1])
    parts = tuple(
        GroupSums(group, None if rows is None else rows[start:end], sums[start:end])
        for group, start, end in zip(groups, starts, ends, strict=True)
    )
    return Partial(header, groups, parts)


def _id_of(header: Header) -> FrameId:
    return FrameId(header.incarnation, header.step, header.layer, header.ubatch)


def _check_counts(header: Header) -> None:
    if not (header.n_tokens and header.width and header.n_groups):
        raise BadFrameError("a frame needs at least one token, one column and one group")
    if bool(header.flags & Flag.UNIFORM) != (header.n_routes == 0):
        raise BadFrameError(f"{header.n_routes} routes contradict flags {header.flags:#04x}")


def _check_length(buffer: memoryview, needed: int) -> None:
    if len(buffer) != needed:
        raise BadFrameError(f"the counts in the header need {needed} bytes, the frame has {len(buffer)}")


def _check_rows(rows: Tensor, ends: tuple[int, ...], n_tokens: int) -> None:
    if int(rows.min()) < 0 or int(rows.max()) >= n_tokens:
        raise BadFrameError(f"a route names a row outside the {n_tokens} tokens of the frame")
    falls = (rows[1:] < rows[:-1]).nonzero().flatten() + 1
    if not set(falls.tolist()) <= set(ends):
        raise BadFrameError("the rows of a group are not in ascending order")


def _write_groups(buffer: memoryview, offset: int, groups: Sequence[int], ends: Sequence[int]) -> int:
    table = [value for entry in zip(groups, ends, strict=True) for value in entry]
    struct.pack_into(f"<{len(table)}I", buffer, offset, *table)
    return offset + aligned(4 * len(table))


def _read_groups(buffer: memoryview, offset: int, header: Header) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    numbers = struct.unpack_from(f"<{2 * header.n_groups}I", buffer, offset)
    groups, ends = numbers[::2], numbers[1::2]
    if any(later <= sooner for sooner, later in itertools.pairwise(groups)):
        raise BadFrameError(f"groups {groups} are not in ascending order")
    if any(later < sooner for sooner, later in itertools.pairwise(ends)) or ends[-1] != header.n_routes:
        raise BadFrameError(f"group ends {ends} do not partition {header.n_routes} routes")
    return groups, ends, offset + aligned(_GROUP_ENTRY_BYTES * header.n_groups)


def _view(buffer: memoryview, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype, count=shape[0] * shape[1], offset=offset).view(shape)


def _write_array(buffer: memoryview, offset: int, array: Tensor) -> int:
    torch.frombuffer(buffer, dtype=array.dtype, count=len(array), offset=offset).copy_(array)
    return offset + aligned(4 * len(array))


def _read_array(buffer: memoryview, offset: int, count: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).clone(), offset + aligned(4 * count)
