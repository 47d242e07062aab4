"""Any sequence of frames through one slot: what is remembered of one frame never shows in the next."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.wire.frame import (
    FrameId,
    GroupSums,
    Routes,
    decode_dispatch,
    decode_partial,
    encode_dispatch,
    encode_partial,
)
from katsura.wire.header import read_header
from katsura.wire.repeat import DispatchReader, DispatchWriter, Numbers, PartialReader, PartialWriter, Place

ID = FrameId(incarnation=2**63 - 1, step=2**40, layer=29, ubatch=3)
DIGEST = bytes(range(32))
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Slot:
    """One slot with its four ends, used as a lane, a link and a member use it."""

    def __init__(self) -> None:
        self.request, self.reply = memoryview(bytearray(8192)), memoryview(bytearray(8192))
        self.asks: DispatchWriter | None = None
        self.form: tuple[object, ...] = ()
        self.length = 0
        self.hears = PartialReader()
        self.reads, self.answers = DispatchReader(), PartialWriter(self.reply)
        self.short_ways = 0

    def ask(self, step: int, groups: tuple[int, ...], hidden: torch.Tensor, trace: bytes, routes: Routes | None) -> int:
        if routes is not None:
            self.asks = None
            return encode_dispatch(
                self.request, ID._replace(step=step), groups, hidden, routes,
                digest=DIGEST, epoch=step, deadline_us=step, trace=trace,
            )  # fmt: skip
        form = groups, hidden.shape, bool(trace)
        if self.asks is None or self.form != form:
            self.asks, self.form = DispatchWriter(self.request, groups, DIGEST), form
            self.length = self.asks.begin(place_of(step), hidden, step, step, trace)
        else:
            self.asks.write(place_of(step), hidden, step, step, trace)
        return self.length

    def serve(self, nbytes: int, value: float) -> tuple[int, torch.Tensor, bytes, Numbers | None]:
        """Answer `value + group / 8` everywhere; the reply's length, and what was read of the request."""
        frame = self.request[:nbytes]
        numbers = self.reads.read(frame)
        if numbers is not None and self.answers.nbytes:
            self.short_ways += 1
            for group, into in zip(self.reads.groups, self.answers.sums, strict=True):
                into.fill_(value + group / 8)
            self.answers.write(numbers[:4], numbers[4], 7)
            trace = self.reads.trace(frame) if self.reads.traced else b""
            return self.answers.nbytes, self.reads.hidden.clone(), trace, numbers
        asked = decode_dispatch(frame, read_header(frame))
        self.reads.learn(frame, asked)
        rows = None if asked.routes is None else torch.zeros(1).int()
        count, width = (asked.hidden.shape[0] if rows is None else 1), asked.hidden.shape[1]
        parts = [GroupSums(group, rows, torch.full((count, width), value + group / 8)) for group in asked.groups]
        length = encode_partial(self.reply, asked, parts, 7)
        self.answers.learn(self.reply, length, asked)
        return length, asked.hidden.clone(), asked.trace, None

    def hear(self, nbytes: int) -> tuple[int, tuple[GroupSums, ...]]:
        frame = self.reply[:nbytes]
        numbers = self.hears.read(frame)
        if numbers is not None:
            assert numbers[5] == 7
            return numbers[3], self.hears.parts
        partial = decode_partial(frame, read_header(frame))
        self.hears.learn(frame, partial)
        return partial.id.step, partial.parts


def place_of(step: int) -> Place:
    return ID.layer, ID.ubatch, ID.incarnation, step


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([(0,), (0, 2), (1, 2), (0, 1, 2)]), st.integers(1, 3), st.booleans(), st.booleans()),
        max_size=8,
    )
)
def test_a_slot_carries_any_sequence_of_frames(frames: list[tuple[tuple[int, ...], int, bool, bool]]) -> None:
    slot = Slot()
    for step, (groups, rows, traced, routed) in enumerate(frames):
        hidden = torch.full((rows, 8), float(step))
        routes = None
        if routed:
            ids = torch.arange(len(groups)).int()
            routes = Routes(torch.zeros(len(groups)).int(), ids, ids + 1.0, tuple(range(1, len(groups) + 1)))
        trace = TRACE if traced else b""
        length, read, seen_trace, numbers = slot.serve(slot.ask(step, groups, hidden, trace, routes), float(step))
        assert torch.equal(read, hidden)
        assert seen_trace == trace
        assert numbers is None or numbers[:6] == (29, 3, ID.incarnation, step, step, step)
        answered, parts = slot.hear(length)
        assert answered == step
        assert [part.group for part in parts] == list(groups)
        assert all(torch.equal(part.sums, torch.full_like(part.sums, step + part.group / 8)) for part in parts)


def test_the_second_frame_of_a_form_takes_the_short_way() -> None:
    slot = Slot()
    for step in range(4):
        length, *_ = slot.serve(slot.ask(step, (0, 1), torch.zeros(2, 8), b"", None), float(step))
        slot.hear(length)
    assert slot.short_ways == 3


def test_a_damaged_frame_does_not_pass_for_the_last_one() -> None:
    slot = Slot()
    for step in range(2):
        nbytes = slot.ask(step, (0, 1), torch.zeros(1, 8), b"", None)
        slot.serve(nbytes, 0.0)
    whole = bytes(slot.request[:nbytes])
    assert slot.reads.read(memoryview(whole)) is not None
    for at in (*range(64), 64, 72):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        assert slot.reads.read(memoryview(damaged)) is None, f"byte {at}"
    assert slot.reads.read(memoryview(whole[:-4])) is None
