"""What a member does with frames: check, compute, answer in place, or give back with a reason.

A decode loop sends the same form of frame thousands of times a second, so the way of a frame like the one before it in
its slot is short (`_again`): no check that its form has passed is made twice, and sums are computed into the reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from katsura.domain.cost import FrameCost
from katsura.domain.errors import FailedPreconditionError
from katsura.domain.shape import Numerics
from katsura.experts import messages
from katsura.experts.core.residency import LastFrame
from katsura.experts.core.window import Waiting, arrange
from katsura.experts.groups import Groups
from katsura.model.ffn import GroupSet
from katsura.model.linear import TORCH_DTYPE
from katsura.wire.frame import Dispatch, GroupSums, decode_dispatch, encode_partial, partial_bytes
from katsura.wire.header import DIGEST_BYTES, BadFrameError, Header, Kind, NackReason, read_header, write_control
from katsura.wire.repeat import DispatchReader, PartialWriter
from katsura.wire.transport import Request


@dataclass(frozen=True, slots=True)
class Identity:
    """What every frame is checked against, and what a WELCOME says."""

    incarnation: int
    weights_digest: bytes
    revision_id: str
    fingerprint: str
    cost: FrameCost
    numerics: Numerics


class _NackError(Exception):
    """A frame that is given back undone."""

    def __init__(self, why: NackReason, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


@dataclass(slots=True)
class _Slot:
    """Of one slot of one client: what came in, what went out, by which sets of groups."""

    client: LastFrame
    reply: PartialWriter
    request: DispatchReader = field(default_factory=DispatchReader)
    held: Mapping[int, GroupSet] = field(default_factory=dict)


@dataclass(slots=True)
class _Arrived:
    request: Request
    frame: Dispatch
    slot: _Slot
    at_s: float
    at_ns: int


class Frames:
    """Serves frames from what `groups` holds."""

    def __init__(self, identity: Identity, groups: Groups, now: Callable[[], float]) -> None:
        self.epoch = 0
        """Of the committed table."""
        self.draining = False
        self.clients: dict[int, LastFrame] = {}
        self._identity, self._groups, self._now = identity, groups, now
        self._digest = identity.weights_digest[:DIGEST_BYTES]
        shape = groups.holdings.config.shape
        self._layer_count, self._width, self._is_moe = shape.layer_count, shape.hidden_size, shape.is_moe
        self._layout = groups.holdings.layout
        self._dtype = TORCH_DTYPE[groups.holdings.kernels.dtype]
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._answered = self._refused = 0
        self._seconds = 0.0
        self._steps: dict[tuple[bytes, int], messages.TracedStep] = {}

    def admit(self, hello: Mapping[str, Any]) -> Mapping[str, Any]:
        """Welcome shards of our own revision; FailedPreconditionError for others."""
        asked, ours = hello.get("revision_id"), self._identity
        if asked != ours.revision_id:
            raise FailedPreconditionError(f"this member serves revision {ours.revision_id}, not {asked!r}")
        if self.draining:
            raise FailedPreconditionError("this member is draining")
        return {
            "incarnation": str(ours.incarnation),
            "fingerprint": ours.fingerprint,
            "unit_cost_s": ours.cost.unit_s,
            "token_cost_s": ours.cost.token_s,
        }

    def serve(self, requests: Sequence[Request]) -> None:
        """Answer all of them."""
        if len(requests) == 1 and self._again(requests[0]):
            return
        arrived = [read for request in requests if (read := self._read(request)) is not None]
        if len(arrived) == 1:
            self._answer(arrived)
        elif arrived:
            self._serve_window(arrived)

    def forget_all_but(self, alive: Callable[[int], bool]) -> None:
        """Drop what is known of clients that are gone."""
        self.clients = {client: last for client, last in self.clients.items() if alive(client)}
        self._slots = {key: slot for key, slot in self._slots.items() if alive(key[0])}

    def tally(self, clients: int) -> messages.Report | None:
        """What happened since the last tally; None if nothing."""
        if not (self._answered or self._refused):
            return None
        report = messages.Report(clients, self._answered, self._refused, self._seconds, tuple(self._steps.values()))
        self._answered = self._refused = 0
        self._seconds, self._steps = 0.0, {}
        return report

    def _again(self, request: Request) -> bool:
        """Answer a frame of the form that its slot carried last; False where it must go the long way."""
        begin_s = self._now()
        slot = self._slots.get((request.client, request.slot))
        if slot is None or not slot.reply.nbytes or self.draining:
            return False
        numbers = slot.request.read(request.frame)
        if numbers is None:
            return False
        held = slot.held.get(numbers[0])
        if held is None:
            return False
        trace = slot.request.trace(request.frame) if slot.request.traced else b""
        begin_ns = time.time_ns() if trace else 0
        hidden = slot.request.hidden
        held.write_partials(hidden, slot.reply.sums)
        end_s = self._now()
        slot.client.epoch, slot.client.at_s = numbers[4], begin_s
        self._seconds += end_s - begin_s
        self._answered += 1
        if trace:
            self._trace(trace, numbers[3], begin_ns, hidden.shape[0])
        slot.reply.write(numbers[:4], numbers[4], int((end_s - begin_s) * 1e6))
        request.answer(slot.reply.nbytes)
        return True

    def _read(self, request: Request) -> _Arrived | None:
        header = None
        try:
            header = read_header(request.frame)
            frame = self._checked(request, header)
            slot = self._slot(request)
            slot.request.learn(request.frame, frame)
            slot.held = self._groups.ready(frame.groups) if frame.routes is None else {}
        except BadFrameError as error:
            self._give_back(request, header, NackReason.MALFORMED, error.message)
            return None
        except _NackError as nack:
            self._give_back(request, header, nack.why, nack.message)
            return None
        now_s = self._now()
        slot.client.epoch, slot.client.at_s = header.epoch, now_s
        return _Arrived(request, frame, slot, now_s, time.time_ns() if frame.trace else 0)

    def _slot(self, request: Request) -> _Slot:
        key = request.client, request.slot
        if key not in self._slots:
            client = self.clients.setdefault(request.client, LastFrame(0, 0.0))
            self._slots[key] = _Slot(client, PartialWriter(request.reply_buffer))
        return self._slots[key]

    def _checked(self, request: Request, header: Header) -> Dispatch:
        """A frame that can be computed. Raises BadFrameError or _NackError."""
        if header.kind is not Kind.DISPATCH:
            raise BadFrameError(f"members take DISPATCH frames, not {header.kind.name}")
        if header.digest != self._digest:
            raise _NackError(NackReason.WRONG_WEIGHTS, "this member holds other weights")
        if self.draining:
            raise _NackError(NackReason.DRAINING, "this member is draining")
        frame = decode_dispatch(request.frame, header)
        if header.width != self._width or frame.hidden.dtype != self._dtype:
            raise BadFrameError(f"hidden is {header.width} wide in {frame.hidden.dtype}, which this model is not")
        if header.layer >= self._layer_count or frame.groups[-1] >= self._layout.group_count:
            raise BadFrameError(f"layer {header.layer}, groups {frame.groups} are not all of this model's")
        if self._is_moe != (frame.routes is not None):
            raise BadFrameError("routes belong to a mixture of experts, and only there")
        missing = [group for group in frame.groups if not self._groups.has((header.layer, group))]
        if missing:
            why = NackReason.STALE_EPOCH if header.epoch < self.epoch else NackReason.NOT_LOADED
            raise _NackError(why, f"layer {header.layer}, groups {missing} are not loaded")
        if frame.routes is not None:
            self._check_units(frame)
        if request.reply_bytes < self._reply_bytes(frame):
            raise BadFrameError("the reply slot is shorter than the answer")
        return frame

    def _check_units(self, frame: Dispatch) -> None:
        assert frame.routes is not None
        for index, group in enumerate(frame.groups):
            units = frame.routes.units[frame.routes.span(index)]
            own = self._layout.units_of(group)
            if len(units) and not (own.start <= int(units.min()) and int(units.max()) < own.stop):
                raise BadFrameError(f"a route of group {group} names a unit of another group")

    def _reply_bytes(self, frame: Dispatch) -> int:
        sums = len(frame.groups) * frame.header.n_tokens if frame.routes is None else frame.header.n_routes
        return partial_bytes(sums, frame.header.width, len(frame.groups), frame.routes is None)

    def _serve_window(self, arrived: Sequence[_Arrived]) -> None:
        waiting = [
            Waiting(i, a.frame.header.layer, a.at_s + a.frame.header.time_us / 1e6, *self._size(a.frame))
            for i, a in enumerate(arrived)
        ]
        fuse = self._identity.numerics is Numerics.INVARIANT
        window = arrange(waiting, self._now(), self._identity.cost, fuse)
        for why, indices in ((NackReason.EXPIRED, window.expired), (NackReason.OVERLOADED, window.overloaded)):
            for index in indices:
                lost = arrived[index]
                self._give_back(lost.request, lost.frame.header, why, "no time is left for it here")
        for batch in window.batches:
            self._answer([arrived[index] for index in batch])

    def _size(self, frame: Dispatch) -> tuple[int, int]:
        if frame.routes is None:
            units = len(frame.groups) * self._layout.units_per_group
            return units, units * frame.header.n_tokens
        return len(set(frame.routes.units.tolist())), frame.header.n_routes

    def _answer(self, batch: Sequence[_Arrived]) -> None:
        begin_s = self._now()
        answers = self._groups.compute([arrived.frame for arrived in batch])
        end_s = self._now()
        self._seconds += end_s - begin_s
        for arrived, parts in zip(batch, answers, strict=True):
            self._reply(arrived, parts, end_s)

    def _reply(self, arrived: _Arrived, parts: Sequence[GroupSums], end_s: float) -> None:
        member_us = int((end_s - arrived.at_s) * 1e6)
        request, frame, buffer = arrived.request, arrived.frame, arrived.request.reply_buffer
        nbytes = encode_partial(buffer, frame, parts, member_us)
        arrived.slot.reply.learn(buffer, nbytes, frame)
        self._answered += 1
        if frame.trace:
            self._trace(frame.trace, frame.header.step, arrived.at_ns, frame.header.n_tokens)
        request.answer(nbytes)  # last: who has its answer finds it counted

    def _trace(self, trace: bytes, step: int, begin_ns: int, n_tokens: int) -> None:
        past = self._steps.get((trace, step))
        self._steps[trace, step] = messages.TracedStep(
            trace.decode("ascii", "replace"),
            past.begin_ns if past else begin_ns,
            time.time_ns(),
            step,
            (past.frames if past else 0) + 1,
            n_tokens,
        )

    def _give_back(self, request: Request, header: Header | None, why: NackReason, message: str) -> None:
        self._refused += 1
        body = {"reason": why, "message": message, "epoch": self.epoch}
        self._slots.pop((request.client, request.slot), None)  # the reply no longer holds what is remembered of it
        request.answer(write_control(request.reply_buffer, Kind.NACK, body, header))
