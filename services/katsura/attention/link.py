"""One member, as a shard's pool reaches it: connecting, posting, waiting, suspecting, giving up and trying again."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from katsura.attention.core.dispatch import suspicion_s
from katsura.attention.lane import FormCost, Lane
from katsura.domain.cost import FrameCost
from katsura.domain.errors import InternalError, KatsuraError
from katsura.domain.tables import Assignment
from katsura.wire.connect import connect
from katsura.wire.frame import (
    TRACE_BYTES,
    FrameId,
    GroupSums,
    Partial,
    Routes,
    decode_partial,
    dispatch_bytes,
    encode_dispatch,
)
from katsura.wire.header import BadFrameError, Kind, NackReason, read_control, read_header
from katsura.wire.tls import Contexts
from katsura.wire.transport import Channel, Limits, Slot

_CONNECT_S = 0.5
_PAUSE_FIRST_S = 0.05
_PAUSE_MOST_S = 5.0
"""A member that could not be reached is left alone for this long; doubled each time."""
_DRAINING_S = 1.0
LANES = 2
"""Slots of a channel that are kept for lanes: as many sets of groups may one member have over the layers."""


class LostError(Exception):
    """This member did not serve the frame; another may. `why` is for a person."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What all links of a shard share.

    Attributes:
        revision_id: that members must serve; weights_digest: that every frame carries.
        shard_id: who we are, for the member's log.
        units_per_group: of the layout, to predict what a frame costs.
        limits: of every channel.
        frame_timeout_s: longest patience for one frame.
        tls: for members that are not on this machine.
    """

    revision_id: str
    weights_digest: bytes
    shard_id: str
    units_per_group: int
    limits: Limits
    frame_timeout_s: float
    tls: Contexts | None = None


@dataclass(slots=True)
class Ask:
    """A posted frame, and when things happened to it (monotonic seconds)."""

    id: FrameId
    groups: tuple[int, ...]
    shape: torch.Size
    slot: Slot
    patience_s: float
    predicted_s: float
    posted_s: float
    answered_s: float = 0.0
    member_s: float = 0.0


class Link:
    """One life of one member. Belongs to the compute thread."""

    def __init__(self, assignment: Assignment, settings: LinkSettings) -> None:
        self.assignment = assignment
        self.how = ""
        """How it is reached, for a person."""
        self._settings = settings
        self._channel: Channel | None = None
        self._cost = FrameCost(0.0, 0.0)
        self._queue_s = 0.0
        self._strikes = 0
        self._pause_s = _PAUSE_FIRST_S
        self._paused_until_s = 0.0
        self._barred = False
        self._held: list[Slot] = []
        self._lanes: dict[tuple[int, ...], Lane] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is a channel that works, as far as is known."""
        return self._channel is not None and self._channel.retired is None

    def usable(self, now_s: float) -> bool:
        """Whether a frame may be sent, or a connection tried."""
        return not self._barred and (self.is_open or now_s >= self._paused_until_s)

    def open(self) -> None:
        """Connect. Raises LostError, and is not usable for a while."""
        settings = self._settings
        hello = {"revision_id": settings.revision_id, "shard_id": settings.shard_id}
        endpoints = self.assignment.data_endpoints
        try:
            channel, self.how = connect(endpoints, hello, settings.limits, _CONNECT_S, settings.tls)
        except KatsuraError as error:
            self._pause()
            raise LostError(error.message) from error
        welcome, expected = channel.welcome, self.assignment
        found = (welcome.get("incarnation"), welcome.get("fingerprint"))
        if found != (str(expected.incarnation), expected.fingerprint):
            channel.retire("it is not the member that the table names")
            self._pause()
            raise LostError("it is another life of the member than the table names, or computes other bits")
        self._channel = channel
        self._cost = FrameCost(float(welcome.get("unit_cost_s", 0.0)), float(welcome.get("token_cost_s", 0.0)))
        self._pause_s = _PAUSE_FIRST_S
        self._held, self._lanes = [], {}

    def close(self, why: str) -> None:
        """Let go of the member."""
        if self._channel is not None:
            self._channel.retire(why)

    def lane(self, groups: tuple[int, ...], hidden: Tensor, traced: bool) -> Lane | None:
        """The lane for `groups`; None if the member cannot be reached now, or has as many lanes as it may.

        All lanes are for frames of one form: `leave_lanes` before another one.
        """
        channel, lane = self._channel, self._lanes.get(groups)
        if channel is None or channel.retired is not None:
            return None
        if lane is None and len(self._lanes) < LANES:
            slot = channel.reserve(
                dispatch_bytes(hidden.shape[0], hidden.shape[1], hidden.dtype, len(groups), 0, traced)
            )
            cost = self._cost_of(groups, len(hidden), 0)
            lane = Lane(self, channel, slot, groups, hidden.shape, self._settings.weights_digest, cost)
            self._lanes[groups] = lane
            self.begin()
        return lane

    def leave_lanes(self) -> None:
        """Give their slots back."""
        for lane in self._lanes.values():
            lane.leave()
        self._lanes = {}

    def begin(self) -> None:
        """A step begins: be as patient with each lane as its last answer asks for."""
        for lane in self._lanes.values():
            if lane.member_us:
                self._strikes, self._queue_s = 0, max(0.0, lane.member_us / 1e6 - lane.cost.predicted_s)
            lane.patience_s = self._patience_s(lane.cost)

    def post(
        self,
        id: FrameId,
        groups: tuple[int, ...],
        hidden: Tensor,
        routes: Routes | None,
        epoch: int,
        deadline_s: float,
        trace: bytes,
        replay: bool,
    ) -> Ask:
        """Send one frame; `answer` waits for it. Raises LostError."""
        if not self.is_open:
            self.open()
        channel = self._channel
        assert channel is not None
        n_tokens, width = hidden.shape
        n_routes = 0 if routes is None else len(routes.rows)
        cost = self._cost_of(groups, n_tokens, n_routes)
        now_s = time.monotonic()
        left_s = max(0.001, deadline_s - now_s)
        patience_s = min(left_s, self._patience_s(cost))
        try:
            slot = channel.reserve(
                dispatch_bytes(n_tokens, width, hidden.dtype, len(groups), n_routes, traced=len(trace) > 0)
            )
            nbytes = encode_dispatch(
                slot.request, id, groups, hidden, routes, digest=self._settings.weights_digest, epoch=epoch,
                deadline_us=int(left_s * 1e6), trace=trace[:TRACE_BYTES], replay=replay,
            )  # fmt: skip
            channel.post(slot, nbytes, patience_s)
        except KatsuraError as error:
            raise self.lost(error, channel) from error
        return Ask(id, groups, hidden.shape, slot, patience_s, cost.predicted_s, now_s)

    def answer(self, ask: Ask) -> tuple[GroupSums, ...]:
        """Wait for a frame's partial sums: views that hold until `release`. Raises LostError."""
        channel = self._channel
        assert channel is not None
        try:
            partial = self.read(channel.wait(ask.slot, ask.patience_s), ask.groups, ask.shape)
            if partial.id != ask.id:
                raise BadFrameError("the answer is to another question")
        except (LostError, InternalError):
            channel.release(ask.slot)
            raise
        except KatsuraError as error:
            raise self.lost(error, channel) from error
        finally:
            ask.answered_s = time.monotonic()
        self._held.append(ask.slot)
        self._strikes = 0
        ask.member_s = partial.header.time_us / 1e6
        self._queue_s = max(0.0, ask.member_s - ask.predicted_s)
        return partial.parts

    def _cost_of(self, groups: tuple[int, ...], n_tokens: int, n_routes: int) -> FormCost:
        units = len(groups) * self._settings.units_per_group
        token_units = n_routes or units * n_tokens
        return FormCost(units, token_units, self._cost.predict_s(units, token_units))

    def _patience_s(self, cost: FormCost) -> float:
        most_s = self._settings.frame_timeout_s
        return suspicion_s(self._cost, cost.units, cost.token_units, self._queue_s, self._strikes, most_s)

    def release(self) -> None:
        """Give back the slots of all answers read so far."""
        if self._channel is not None:
            for slot in self._held:
                self._channel.release(slot)
        self._held = []

    def read(self, reply: memoryview, groups: tuple[int, ...], shape: torch.Size) -> Partial:
        """The sums of `groups` for rows of `shape`. LostError if the member refused, BadFrameError, InternalError."""
        header = read_header(reply)
        if header.kind is Kind.NACK:
            raise self._refused(read_control(reply, header))
        if header.kind is not Kind.PARTIAL:
            raise BadFrameError(f"a member answers by PARTIAL or NACK, not {header.kind.name}")
        partial = decode_partial(reply, header)
        if (partial.groups, header.n_tokens, header.width) != (groups, *shape):
            raise BadFrameError("the answer is to another question")
        return partial

    def _refused(self, refusal: dict[str, object]) -> LostError:
        reason, text = refusal.get("reason"), str(refusal.get("message", ""))
        if reason == NackReason.MALFORMED:
            raise InternalError(f"member {self.assignment.member_id} cannot read our frame: {text}")
        if reason == NackReason.WRONG_WEIGHTS:
            self._barred = True
        if reason == NackReason.DRAINING:
            self._paused_until_s = time.monotonic() + _DRAINING_S
            self.close("the member drains")
        return LostError(f"{reason}: {text}")

    def lost(self, error: KatsuraError, channel: Channel) -> LostError:
        """Give `channel` up for `error`, which is raised itself if it is a bug of ours."""
        if isinstance(error, InternalError):
            raise error
        channel.retire(error.message)
        if channel is self._channel:
            self._strikes = min(self._strikes + 1, 8)
            self._held, self._lanes = [], {}
        return LostError(error.message)

    def _pause(self) -> None:
        self._paused_until_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_MOST_S)
