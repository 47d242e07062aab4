"""Frames of one form, one after another in the same slot: the way of a decode loop.

A decode loop sends thousands of UNIFORM frames a second that differ in six numbers and their rows. What `frame` wrote
or checked once in a slot stays written and checked: the header's other fields, the table of groups, the views of the
slot's memory. The four ends of a slot each keep one object; anything else goes the long way through `frame`.

    client   DispatchWriter --- request ---> DispatchReader   server
             PartialReader  <--- reply ----- PartialWriter

The code is flat on purpose. A member runs it between two products that sweep the caches, where a Python call costs
several times what it costs in a loop.
"""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from katsura.wire.frame import TIME_US_MAX, TRACE_BYTES, Dispatch, FrameId, GroupSums, Partial, encode_dispatch
from katsura.wire.header import CHECKED_BYTES, CHECKSUM, HEADER_BYTES, Flag

Place = tuple[int, int, int, int]
"""What a frame is about: layer, ubatch, incarnation, step."""

Numbers = tuple[int, int, int, int, int, int, int]
"""What differs between the headers of two frames of one form: `Place`, epoch, time_us and the checksum."""

_NUMBERS = struct.Struct("<6xHH14xQQ8xII4xI")
_SAME = "<6s4x14s16x8s8x4s4x"
"""The bytes of a header that are not `Numbers`, and no others; a form adds its trace and its groups."""
_LAYER_AT, _LAYER = 6, struct.Struct("<HH")
_STEP_AT, _STEP = 24, struct.Struct("<QQ")
_TIMES_AT, _TIMES = 48, struct.Struct("<II")


class _Form:
    """What all frames of a form share: their length, and all of header and groups that is not `Numbers`."""

    __slots__ = ("_fields", "_length", "_values")

    def __init__(self, frame: memoryview, traced: bool, group_count: int) -> None:
        self._length = len(frame)
        self._fields = struct.Struct(f"{_SAME}{TRACE_BYTES if traced else 0}x{8 * group_count}s")
        self._values = self._fields.unpack_from(frame)

    def read(self, frame: memoryview) -> Numbers | None:
        """The numbers of `frame`; None if it is of another form, or damaged."""
        if len(frame) != self._length:
            return None
        head = bytes(frame[: self._fields.size])  # what the peer writes from here on is not looked at
        numbers: Numbers = _NUMBERS.unpack_from(head)
        if self._fields.unpack(head) != self._values or zlib.crc32(head[:CHECKED_BYTES]) != numbers[6]:
            return None
        return numbers


class _Header:
    """A header of one form in our own memory, of which only `Numbers` change."""

    __slots__ = ("_buffer", "_checked")

    def __init__(self, buffer: memoryview) -> None:
        self._buffer, self._checked = buffer, buffer[:CHECKED_BYTES]

    def write(self, place: Place, epoch: int, time_us: int) -> None:
        """Turn the header into that of the next frame."""
        layer, ubatch, incarnation, step = place
        buffer = self._buffer
        _LAYER.pack_into(buffer, _LAYER_AT, layer, ubatch)
        _STEP.pack_into(buffer, _STEP_AT, incarnation, step)
        _TIMES.pack_into(buffer, _TIMES_AT, epoch, time_us if time_us < TIME_US_MAX else TIME_US_MAX)
        CHECKSUM.pack_into(buffer, CHECKED_BYTES, zlib.crc32(self._checked))


class DispatchWriter:
    """The request half of a slot, as the client writes UNIFORM frames of one form into it."""

    __slots__ = ("_buffer", "_digest", "_groups", "_header", "_hidden", "_trace")

    def __init__(self, buffer: memoryview, groups: tuple[int, ...], digest: bytes) -> None:
        """`groups` ascending; `digest` of the weights."""
        self._buffer, self._groups, self._digest = buffer, groups, digest
        self._header = _Header(buffer)
        self._hidden = torch.empty(0)
        self._trace = buffer[HEADER_BYTES : HEADER_BYTES + TRACE_BYTES]

    def begin(self, place: Place, hidden: Tensor, epoch: int, time_us: int, trace: bytes) -> int:
        """Write the first frame, whose form `write` keeps; the length of all of them in bytes."""
        layer, ubatch, incarnation, step = place
        nbytes = encode_dispatch(
            self._buffer, FrameId(incarnation, step, layer, ubatch), self._groups, hidden,
            digest=self._digest, epoch=epoch, deadline_us=time_us, trace=trace,
        )  # fmt: skip
        count = hidden.numel()
        start = nbytes - count * hidden.element_size()
        self._hidden = torch.frombuffer(self._buffer, dtype=hidden.dtype, count=count, offset=start).view(hidden.shape)
        return nbytes

    def write(self, place: Place, hidden: Tensor, epoch: int, time_us: int, trace: bytes) -> None:
        """Write the next frame: rows, dtype and whether there is a trace are those of `begin`."""
        self._hidden.copy_(hidden)
        if trace:
            self._trace[:] = trace.ljust(TRACE_BYTES, b"\0")
        self._header.write(place, epoch, time_us)


class PartialReader:
    """The reply half of a slot, as the client reads answers to UNIFORM frames of one form from it."""

    __slots__ = ("parts", "read")

    def __init__(self) -> None:
        self.parts: tuple[GroupSums, ...] = ()
        """The sums: views of the slot."""
        self.read = _unknown
        """The numbers of a reply of this form; None where it must be read by `decode_partial`."""

    def learn(self, reply: memoryview, partial: Partial) -> None:
        """Keep what `decode_partial` found in `reply`."""
        uniform = partial.header.flags & Flag.UNIFORM
        self.read = _Form(reply, False, len(partial.groups)).read if uniform else _unknown
        self.parts = partial.parts


class DispatchReader:
    """The request half of a slot, as the server reads UNIFORM frames of one form from it."""

    __slots__ = ("groups", "hidden", "read", "traced")

    def __init__(self) -> None:
        self.traced = False
        """Whether a trace context goes with every frame."""
        self.groups: tuple[int, ...] = ()
        self.hidden = torch.empty(0)
        """[n_tokens, width], a view of the slot."""
        self.read = _unknown
        """Numbers of a frame of this form; None where it must be read by `decode_dispatch`."""

    def trace(self, frame: memoryview) -> bytes:
        """The trace context of `frame`, where frames of this form carry one."""
        return bytes(frame[HEADER_BYTES : HEADER_BYTES + TRACE_BYTES]).rstrip(b"\0")

    def learn(self, frame: memoryview, dispatch: Dispatch) -> None:
        """Keep what `decode_dispatch` found in `frame`, once it has been checked whole."""
        self.traced = bool(dispatch.header.flags & Flag.TRACED)
        again = dispatch.routes is None and not dispatch.replay
        self.read = _Form(frame, self.traced, len(dispatch.groups)).read if again else _unknown
        self.groups, self.hidden = dispatch.groups, dispatch.hidden


class PartialWriter:
    """The reply half of a slot, as the server writes answers to UNIFORM frames of one form into it."""

    __slots__ = ("nbytes", "sums", "write")

    def __init__(self, buffer: memoryview) -> None:
        self.nbytes = 0
        """Length of the answers of the form; 0 while the slot holds nothing that can be written over."""
        self.sums: tuple[Tensor, ...] = ()
        """Per group of the form, where its sums go: f32 [n_tokens, width], views of the slot."""
        self.write = _Header(buffer).write
        """Write the header of the answer whose `sums` have been filled."""

    def learn(self, buffer: memoryview, nbytes: int, asked: Dispatch) -> None:
        """Keep what `encode_partial` wrote into `buffer` in answer to `asked`."""
        if asked.routes is not None:
            self.nbytes = 0
            return
        rows, width, groups = asked.header.n_tokens, asked.header.width, len(asked.groups)
        start = nbytes - 4 * groups * rows * width
        sums = torch.frombuffer(buffer, dtype=torch.float32, count=groups * rows * width, offset=start)
        self.sums, self.nbytes = tuple(sums.view(groups, rows, width).unbind()), nbytes


def _unknown(frame: memoryview) -> Numbers | None:
    return None
