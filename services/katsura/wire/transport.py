"""What every transport promises, and the bookkeeping that all of them share.

A client **reserves** a slot (its memory belongs to the transport, so that it can be shared, registered or pinned),
writes a frame into it, **posts** it, **polls** for completions, reads the reply where it lies, and **releases** the
slot. One credit covers a request slot and its reply slot, so a server can always answer. This is the register, post and
poll of RDMA libraries; nothing in it assumes that bytes pass through a socket.

Promises, kept by every backend and checked by `tests/contract/test_transport.py`:

- Everything is synchronous. A waiter blocks in the kernel and never spins; every wait has a limit.
- A channel whose peer died, sent garbage or did not answer in time is **retired whole**: its slots are never used
  again, so a late answer can only reach memory that nobody reads. The way on is a new channel.
- End of file is death. No heartbeat decides about life.
- The server answers in place and in any order; a stopped, slow or dead client never delays another.
"""

from __future__ import annotations

import mmap
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from katsura.domain.errors import (
    DeadlineExceededError,
    InternalError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.wire.header import BadFrameError, Kind, read_control, read_header

PAGE_BYTES = mmap.PAGESIZE
SLOT_BYTES_MIN = 4096
"""Any slot can hold a refusal with its reason."""


class ChannelRetiredError(UnavailableError):
    """The channel is gone: its peer died, misbehaved or was too late. Connect again."""

    default_reason = Reason.CHANNEL_RETIRED


class ChannelTimeoutError(DeadlineExceededError):
    """The peer did not answer in time; the channel has been retired."""

    default_reason = Reason.CHANNEL_RETIRED


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of a channel, asked for by the client and granted or refused by the server.

    Attributes:
        credits: frames that may be in flight.
        request_bytes: longest DISPATCH; reply_bytes: longest answer.
    """

    credits: int
    request_bytes: int
    reply_bytes: int

    def __post_init__(self) -> None:
        sizes = (self.request_bytes, self.reply_bytes)
        if not (0 < self.credits <= 256 and all(SLOT_BYTES_MIN <= size < 2**31 for size in sizes)):
            raise OutOfRangeError(f"{self} is no channel: credits are 1..256, slots hold {SLOT_BYTES_MIN} B to 2 GiB")

    def within(self, granted: Limits) -> bool:
        """Whether a channel of these limits asks for no more than `granted`."""
        return (
            self.credits <= granted.credits
            and self.request_bytes <= granted.request_bytes
            and self.reply_bytes <= granted.reply_bytes
        )

    def as_json(self) -> dict[str, int]:
        """As it travels in HELLO and WELCOME."""
        return {"credits": self.credits, "request_bytes": self.request_bytes, "reply_bytes": self.reply_bytes}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Limits:
        """Back from `as_json`. Raises BadFrameError."""
        values = [body.get(name) for name in ("credits", "request_bytes", "reply_bytes")]
        if not all(type(value) is int for value in values):
            raise BadFrameError(f"limits must be integers, got {values}")
        return cls(*values)  # type: ignore[arg-type]


class SlotState(Enum):
    """free -> reserved -> posted -> arrived -> answered -> free, or posted again. Those of a retired channel stay."""

    FREE = 0
    RESERVED = 1
    POSTED = 2
    ARRIVED = 3
    """Its answer is here, and nobody has been told."""
    ANSWERED = 4


@dataclass(slots=True, eq=False)
class Slot:
    """A credit: memory for one request, held from `reserve` to `release`. `state` and `reply` are the channel's."""

    index: int
    request: memoryview
    reply: memoryview
    state: SlotState = SlotState.FREE


class Channel(Protocol):
    """The client's end of one connection to one member. Not thread-safe: it belongs to one compute thread."""

    transport: str
    limits: Limits
    welcome: Mapping[str, Any]
    """What the server said of itself when it let us in."""

    @property
    def retired(self) -> str | None:
        """Why the channel is gone, or None while it works."""
        ...

    @property
    def credits(self) -> int:
        """Slots that may be reserved now."""
        ...

    def fileno(self) -> int:
        """Readable when `poll` has something to say (an answer, or a death)."""
        ...

    def reserve(self, nbytes: int) -> Slot:
        """A slot for `nbytes`. ResourceExhaustedError without credit, OutOfRangeError if that is too long."""
        ...

    def post(self, slot: Slot, nbytes: int, timeout_s: float) -> None:
        """Hand the first `nbytes` of the slot over. ChannelRetiredError or ChannelTimeoutError if that fails.

        The slot has just been reserved, or answered and read: then its last answer is given up.
        """
        ...

    def poll(self, timeout_s: float) -> Slot | None:
        """A slot that has been answered (`reply` reads it), or None after `timeout_s`. ChannelRetiredError."""
        ...

    def wait(self, slot: Slot, timeout_s: float) -> memoryview:
        """The answer to that very slot. ChannelTimeoutError retires the channel; ChannelRetiredError."""
        ...

    def reply(self, slot: Slot) -> memoryview:
        """The answer's bytes, where they lie; valid until `release`."""
        ...

    def release(self, slot: Slot) -> None:
        """Give the credit back: of an answered slot, or of one that was never posted."""
        ...

    def retire(self, why: str) -> None:
        """Close for good. Idempotent."""
        ...


class Request(Protocol):
    """The server's end of one posted slot."""

    client: int
    """Which client: unique for the life of the server."""
    slot: int
    """Which of the client's slots."""
    reply_bytes: int
    """Length of `reply_buffer`."""
    frame: memoryview
    """What was posted: untrusted, possibly still being written."""

    @property
    def alive(self) -> bool:
        """Whether somebody still waits for the answer."""
        ...

    @property
    def reply_buffer(self) -> memoryview:
        """Where the answer goes; as long as the channel's `reply_bytes`."""
        ...

    def answer(self, nbytes: int) -> None:
        """Hand over the first `nbytes` of `reply_buffer`. Never blocks, never fails: a dead client is dropped."""
        ...


class SlotChannel(ABC):
    """The client's bookkeeping of slots, the same for every backend; a backend sends and receives doorbells."""

    def __init__(
        self, transport: str, limits: Limits, welcome: Mapping[str, Any], requests: memoryview, replies: memoryview
    ) -> None:
        self.transport = transport
        self.limits = limits
        self.welcome = welcome
        self._retired: str | None = None
        self._requests = requests
        self._replies = [slot_view(replies, index, limits.reply_bytes) for index in range(limits.credits)]
        self._slots = [
            Slot(index, slot_view(requests, index, limits.request_bytes), memoryview(b""))
            for index in range(limits.credits)
        ]
        self._free = self._slots[::-1]
        self._unreported: deque[Slot] = deque()

    @property
    def retired(self) -> str | None:
        """Why the channel is gone, or None while it works."""
        return self._retired

    @property
    def credits(self) -> int:
        """Slots that may be reserved now."""
        return 0 if self._retired else len(self._free)

    @abstractmethod
    def fileno(self) -> int:
        """Readable when `poll` has something to say."""

    @abstractmethod
    def _ring(self, index: int, nbytes: int, timeout_s: float) -> bool:
        """Hand a request over; False if the peer did not take it in time. OSError if it is dead."""

    @abstractmethod
    def _heard(self, timeout_s: float) -> tuple[int, int] | None:
        """The next (slot, length) answered, None if there was none in time. OSError or EOFError if the peer is dead."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the connection."""

    def reserve(self, nbytes: int) -> Slot:
        """A slot for a request of `nbytes`."""
        self._must_work()
        if nbytes > self.limits.request_bytes:
            raise OutOfRangeError(
                f"a frame of {nbytes} bytes is longer than this channel's slots of {self.limits.request_bytes} bytes"
            )
        if not self._free:
            raise ResourceExhaustedError(f"all {self.limits.credits} credits of this channel are in flight")
        slot = self._free.pop()
        slot.state = SlotState.RESERVED
        return slot

    def post(self, slot: Slot, nbytes: int, timeout_s: float) -> None:
        """Hand the first `nbytes` of the slot over."""
        if self._retired is not None:
            self._must_work()
        if slot.state not in _POSTABLE or nbytes > len(slot.request):
            raise InternalError(f"slot {slot.index} is {slot.state.name}, or shorter than {nbytes} bytes")
        slot.state = _POSTED
        try:
            taken = self._ring(slot.index, nbytes, timeout_s)
        except OSError as error:
            raise self._gone(f"the peer died: {error}") from error
        if not taken:
            raise self._late(f"the peer did not take a frame of {nbytes} bytes within {timeout_s:.3f} s")

    def poll(self, timeout_s: float) -> Slot | None:
        """A slot that has been answered, or None."""
        self._must_work()
        slot = self._unreported.popleft() if self._unreported else self._receive(timeout_s)
        if slot is not None:
            slot.state = _ANSWERED
        return slot

    def wait(self, slot: Slot, timeout_s: float) -> memoryview:
        """The answer to that very slot."""
        if slot.state is _POSTED:
            deadline_s = time.monotonic() + timeout_s
            while (heard := self._receive(deadline_s - time.monotonic())) is not slot:
                if heard is None:
                    raise self._late(f"no answer within {timeout_s:.3f} s")
                self._unreported.append(heard)
            slot.state = _ANSWERED
        elif slot.state is SlotState.ARRIVED:
            self._unreported.remove(slot)
            slot.state = _ANSWERED
        return self.reply(slot)

    def reply(self, slot: Slot) -> memoryview:
        """The answer's bytes."""
        self._must_work()
        if slot.state is not _ANSWERED:
            raise InternalError(f"slot {slot.index} is {slot.state.name}: it has no answer to read")
        return slot.reply

    def release(self, slot: Slot) -> None:
        """Give the credit back."""
        if self._retired:
            return
        if slot.state not in _POSTABLE:
            raise InternalError(f"slot {slot.index} is {slot.state.name}: it cannot be released")
        slot.state = SlotState.FREE
        self._free.append(slot)

    def retire(self, why: str) -> None:
        """Close for good."""
        if self._retired is None:
            self._retired = why
            self._close()

    def _receive(self, timeout_s: float) -> Slot | None:
        """A slot whose answer came in: ARRIVED."""
        self._must_work()
        try:
            heard = self._heard(timeout_s)
        except TimeoutError as error:
            raise self._late(str(error)) from error
        except (OSError, EOFError) as error:
            raise self._gone(f"the peer died: {error or 'end of file'}") from error
        except BadFrameError as error:
            raise self._gone(f"the peer sent garbage: {error.message}") from error
        return None if heard is None else self._arrived(*heard)

    def _arrived(self, index: int, nbytes: int) -> Slot:
        slot = self._slots[index] if index < len(self._slots) else None
        if slot is None or slot.state is not _POSTED or nbytes > self.limits.reply_bytes:
            raise self._gone(f"the peer answered slot {index} with {nbytes} bytes, which it could not have been asked")
        if len(slot.reply) != nbytes:
            slot.reply = self._replies[index][:nbytes]
        slot.state = SlotState.ARRIVED
        return slot

    def _must_work(self) -> None:
        if self._retired is not None:
            raise ChannelRetiredError(f"this channel is retired: {self._retired}")

    def _gone(self, why: str) -> ChannelRetiredError:
        self.retire(why)
        return ChannelRetiredError(f"the channel is retired: {why}")

    def _late(self, why: str) -> ChannelTimeoutError:
        self.retire(why)
        return ChannelTimeoutError(f"the channel is retired: {why}")


_POSTED, _ANSWERED = SlotState.POSTED, SlotState.ANSWERED
_POSTABLE = (_ANSWERED, SlotState.RESERVED)
"""States in which a slot is its holder's."""

LEAD_BYTES = 64
"""Room before each slot where a transport may keep a preamble, so that both leave in one write."""


def slot_stride(slot_bytes: int) -> int:
    """Distance in bytes between slots: the lead and the slot, rounded up to whole pages."""
    return (LEAD_BYTES + slot_bytes + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES


def slot_view(region: memoryview, index: int, slot_bytes: int) -> memoryview:
    """The bytes of slot `index`, aligned to 64 as frames want it."""
    start = index * slot_stride(slot_bytes) + LEAD_BYTES
    return region[start : start + slot_bytes]


def region_bytes(limits: Limits, slot_bytes: int) -> int:
    """Bytes of all slots of one direction."""
    return limits.credits * slot_stride(slot_bytes)


def private_region(limits: Limits, slot_bytes: int) -> memoryview:
    """Page-aligned memory of this process for all slots of one direction; pages are taken as they are touched."""
    return memoryview(mmap.mmap(-1, region_bytes(limits, slot_bytes)))


def read_welcome(message: bytes) -> dict[str, Any]:
    """What a server says of itself in its answer to HELLO. Raises ChannelRetiredError where it refuses."""
    if not message:
        raise ChannelRetiredError("the server closed the connection instead of greeting")
    view = memoryview(message)
    header = read_header(view)
    body = read_control(view, header)
    if header.kind is not Kind.WELCOME:
        raise ChannelRetiredError(f"the server refused: {body.get('message', header.kind.name)}")
    return body
