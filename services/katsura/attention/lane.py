"""One slot of a member's channel, kept from layer to layer: the way of dense frames in a decode loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Size, Tensor

from katsura.domain.errors import KatsuraError
from katsura.wire.header import BadFrameError
from katsura.wire.repeat import DispatchWriter, Numbers, PartialReader, Place
from katsura.wire.transport import Channel, Slot, SlotState

if TYPE_CHECKING:
    from katsura.attention.link import Link


class FormCost(NamedTuple):
    """What frames of one form cost: units that they activate, (token, unit) pairs, and the seconds that makes."""

    units: int
    token_units: int
    predicted_s: float


class Lane:
    """Frames of one form to one life of a member. Nothing but `post` and `take` in turns.

    Args:
        link: whose lane it is: it judges what goes wrong.
        channel: of the link.
        slot: reserved, and the lane's for good.
        groups: asked for in every frame, ascending.
        shape: of the rows in every frame.
        digest: of the weights.
        cost: of every frame.
    """

    __slots__ = (
        "_channel", "_nbytes", "_reader", "_shape", "_slot", "_writer",
        "cost", "groups", "link", "member_us", "patience_s",
    )  # fmt: skip

    def __init__(
        self,
        link: Link,
        channel: Channel,
        slot: Slot,
        groups: tuple[int, ...],
        shape: Size,
        digest: bytes,
        cost: FormCost,
    ) -> None:
        self.link, self.groups, self.cost = link, groups, cost
        self._channel, self._slot, self._shape = channel, slot, shape
        self._writer, self._reader = DispatchWriter(slot.request, groups, digest), PartialReader()
        self._nbytes = 0
        self.patience_s = 0.0
        """After this long without an answer the member is suspected. Whoever begins a step sets it."""
        self.member_us = 0
        """How long the member had the last frame."""

    @property
    def under_way(self) -> bool:
        """Whether a frame has been posted and not been taken."""
        return self._slot.state is SlotState.POSTED or self._slot.state is SlotState.ARRIVED

    def sums(self, index: int) -> Tensor:
        """Of group number `index` in the answer taken last: f32 [tokens, width], a view that the next `post` ends."""
        return self._reader.parts[index].sums

    def post(self, place: Place, hidden: Tensor, epoch: int, left_us: int, trace: bytes) -> None:
        """Send a frame. LostError."""
        try:
            if self._nbytes:
                self._writer.write(place, hidden, epoch, left_us, trace)
            else:
                self._nbytes = self._writer.begin(place, hidden, epoch, left_us, trace)
            self._channel.post(self._slot, self._nbytes, self.patience_s)
        except KatsuraError as error:
            raise self.link.lost(error, self._channel) from error

    def take(self, place: Place, left_s: float) -> None:
        """Wait for the answer to the frame about `place`. LostError."""
        try:
            reply = self._channel.wait(self._slot, self.patience_s if self.patience_s < left_s else left_s)
            numbers = self._reader.read(reply) or self._learn(reply)
            if numbers[:4] != place:
                raise BadFrameError("the answer is to another question")
        except KatsuraError as error:
            raise self.link.lost(error, self._channel) from error
        self.member_us = numbers[5]

    def leave(self) -> None:
        """Give the slot back; a frame that is still under way ends the channel."""
        if self.under_way:
            self._channel.retire("a frame was given up under way")
        self._channel.release(self._slot)

    def _learn(self, reply: memoryview) -> Numbers:
        partial = self.link.read(reply, self.groups, self._shape)
        self._reader.learn(reply, partial)
        header = partial.header
        place = header.layer, header.ubatch, header.incarnation, header.step
        return (*place, header.epoch, header.time_us, 0)
