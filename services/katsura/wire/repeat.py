"""Frames of one form, one after another in the same slot: the way of a decode loop.

A decode loop sends thousands of UNIFORM frames a second that differ in six numbers and their rows. What `frame` wrote
or checked once in a slot stays written and checked: the header's other fields, the table of groups, the views of the
slot's memory. The four ends of a slot each keep one object; anything else goes the long way through `frame`.

    client   DispatchWriter --- request ---> DispatchReader   server
             PartialReader  <--- reply ----- PartialWriter
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from katsura.wire.frame import TIME_US_MAX, TRACE_BYTES, Dispatch, FrameId, GroupSums, Partial, encode_dispatch
from katsura.wire.header import CHECKED_BYTES, CHECKSUM, HEADER_BYTES, LAYOUT, Flag

_START, _COUNTS, _DIGEST, _LENGTH, _CHECKSUM = slice(0, 5), slice(7, 11), 13, 16, 17


class Numbers(NamedTuple):
    """What differs between the headers of two frames of one form."""

    layer: int
    ubatch: int
    incarnation: int
    step: int
    epoch: int
    time_us: int


class _Form:
    """A header's fields that all frames of a form share, and the bytes of its groups."""

    __slots__ = ("_counts", "_digest", "_length", "_start", "_table", "_table_at")

    def __init__(self, frame: memoryview, traced: bool, group_count: int) -> None:
        fields = LAYOUT.unpack_from(frame, 0)
        self._start, self._counts = fields[_START], fields[_COUNTS]
        self._digest, self._length = fields[_DIGEST], len(frame)
        begin = HEADER_BYTES + (TRACE_BYTES if traced else 0)
        self._table_at = slice(begin, begin + 8 * group_count)
        self._table = bytes(frame[self._table_at])

    def read(self, frame: memoryview) -> Numbers | None:
        """The numbers of `frame`; None if it is of another form, or damaged."""
        if len(frame) != self._length:
            return None
        fields = LAYOUT.unpack_from(frame, 0)
        if (
            fields[_START] != self._start
            or fields[_COUNTS] != self._counts
            or fields[_DIGEST] != self._digest
            or fields[_LENGTH] != self._length - HEADER_BYTES
            or fields[_CHECKSUM] != zlib.crc32(frame[:CHECKED_BYTES])
            or frame[self._table_at] != self._table
        ):
            return None
        return Numbers(fields[5], fields[6], fields[11], fields[12], fields[14], fields[15])

    def write(self, buffer: memoryview, numbers: Sequence[int]) -> int:
        """Write a header of this form with `Numbers` into `buffer`; the length of the frame in bytes."""
        layer, ubatch, incarnation, step, epoch, time_us = numbers
        rest: tuple[Any, ...] = (incarnation, step, self._digest, epoch, time_us, self._length - HEADER_BYTES, 0)
        LAYOUT.pack_into(buffer, 0, *self._start, layer, ubatch, *self._counts, *rest)
        CHECKSUM.pack_into(buffer, CHECKED_BYTES, zlib.crc32(buffer[:CHECKED_BYTES]))
        return self._length


class DispatchWriter:
    """The request half of a slot, as the client writes UNIFORM frames into it."""

    __slots__ = ("_buffer", "_form", "_hidden", "_key")

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._key: tuple[object, ...] = ()
        self._form: _Form | None = None
        self._hidden = torch.empty(0)

    def write(
        self,
        id: FrameId,
        groups: tuple[int, ...],
        hidden: Tensor,
        *,
        digest: bytes,
        epoch: int,
        deadline_us: int,
        trace: bytes = b"",
    ) -> int:
        """As `encode_dispatch`, without routes and not a replay."""
        key = (groups, hidden.shape, hidden.dtype, len(trace) > 0, digest)
        if self._form is None or self._key != key:
            return self._begin(key, id, groups, hidden, digest, epoch, deadline_us, trace)
        if trace:
            self._buffer[HEADER_BYTES : HEADER_BYTES + TRACE_BYTES] = trace.ljust(TRACE_BYTES, b"\0")
        self._hidden.copy_(hidden)
        incarnation, step, layer, ubatch = id
        return self._form.write(self._buffer, (layer, ubatch, incarnation, step, epoch, min(deadline_us, TIME_US_MAX)))

    def forget(self) -> None:
        """Something else was written into the slot."""
        self._form = None

    def _begin(
        self,
        key: tuple[object, ...],
        id: FrameId,
        groups: tuple[int, ...],
        hidden: Tensor,
        digest: bytes,
        epoch: int,
        deadline_us: int,
        trace: bytes,
    ) -> int:
        nbytes = encode_dispatch(
            self._buffer, id, groups, hidden, digest=digest, epoch=epoch, deadline_us=deadline_us, trace=trace
        )
        count = hidden.numel()
        start = nbytes - count * hidden.element_size()
        self._hidden = torch.frombuffer(self._buffer, dtype=hidden.dtype, count=count, offset=start).view(hidden.shape)
        self._form, self._key = _Form(self._buffer[:nbytes], bool(trace), len(groups)), key
        return nbytes


class PartialReader:
    """The reply half of a slot, as the client reads answers to UNIFORM frames of one form from it."""

    __slots__ = ("_form", "asked", "parts")

    def __init__(self) -> None:
        self._form: _Form | None = None
        self.parts: tuple[GroupSums, ...] = ()
        """The sums: views of the slot."""
        self.asked: tuple[tuple[int, ...], tuple[int, ...]] = (), ()
        """Groups and shape of the rows that they answer."""

    def read(self, reply: memoryview) -> Numbers | None:
        """The numbers of a reply of this form; None where it must be read by `decode_partial`."""
        return None if self._form is None else self._form.read(reply)

    def learn(self, reply: memoryview, partial: Partial) -> None:
        """Keep what `decode_partial` found in `reply`."""
        header = partial.header
        self._form = _Form(reply, False, len(partial.groups)) if header.flags & Flag.UNIFORM else None
        self.parts, self.asked = partial.parts, (partial.groups, (header.n_tokens, header.width))


class DispatchReader:
    """The request half of a slot, as the server reads UNIFORM frames of one form from it."""

    __slots__ = ("_form", "_traced", "groups", "hidden")

    def __init__(self) -> None:
        self._form: _Form | None = None
        self._traced = False
        self.groups: tuple[int, ...] = ()
        self.hidden = torch.empty(0)
        """[n_tokens, width], a view of the slot."""

    def read(self, frame: memoryview) -> Numbers | None:
        """Numbers of a frame of this form; None where it must be read by `decode_dispatch`."""
        return None if self._form is None else self._form.read(frame)

    def trace(self, frame: memoryview) -> bytes:
        """The trace context of `frame`, empty if frames of this form carry none."""
        return bytes(frame[HEADER_BYTES : HEADER_BYTES + TRACE_BYTES]).rstrip(b"\0") if self._traced else b""

    def learn(self, frame: memoryview, dispatch: Dispatch) -> None:
        """Keep what `decode_dispatch` found in `frame`, once it has been checked whole."""
        self._traced = bool(dispatch.header.flags & Flag.TRACED)
        again = dispatch.routes is None and not dispatch.replay
        self._form = _Form(frame, self._traced, len(dispatch.groups)) if again else None
        self.groups, self.hidden = dispatch.groups, dispatch.hidden


class PartialWriter:
    """The reply half of a slot, as the server writes answers to UNIFORM frames of one form into it."""

    __slots__ = ("_buffer", "_form", "sums")

    def __init__(self) -> None:
        self._form: _Form | None = None
        self._buffer = memoryview(b"")
        self.sums: tuple[Tensor, ...] = ()
        """Per group of the form, where its sums go: f32 [n_tokens, width], views of the slot."""

    @property
    def ready(self) -> bool:
        """Whether the slot holds an answer of a form that can be written over."""
        return self._form is not None

    def write(self, asked: Numbers, member_us: int) -> int:
        """Write the header of the answer whose `sums` have been filled; its length in bytes."""
        assert self._form is not None, "learn comes first"
        return self._form.write(self._buffer, (*asked[:5], min(member_us, TIME_US_MAX)))

    def learn(self, buffer: memoryview, nbytes: int, asked: Dispatch) -> None:
        """Keep what `encode_partial` wrote into `buffer` in answer to `asked`."""
        if asked.routes is not None:
            self._form = None
            return
        rows, width, groups = asked.header.n_tokens, asked.header.width, len(asked.groups)
        start = nbytes - 4 * groups * rows * width
        sums = torch.frombuffer(buffer, dtype=torch.float32, count=groups * rows * width, offset=start)
        self.sums = tuple(sums.view(groups, rows, width).unbind())
        self._buffer, self._form = buffer, _Form(buffer[:nbytes], False, groups)
