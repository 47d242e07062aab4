"""What the two processes of a member say to each other over the pipe (`katsura.wire.pipe`).

The RPC process sends commands, each with a number; the compute process answers every one by `Done` or `Failed`, when it
is carried out, and sends a `Report` of its frames now and then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from katsura.domain.errors import BY_CODE, InternalError, KatsuraError, Reason
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout
from katsura.state.records import from_json, to_json


@dataclass(frozen=True, slots=True)
class Start:
    """First of all: which life of the member this is."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Load:
    """Hold these groups too."""

    call: int
    groups: tuple[GroupRange, ...]


@dataclass(frozen=True, slots=True)
class Fuse:
    """Frames will ask for these groups together, layer by layer: prepare for that before they come."""

    call: int
    groups: tuple[GroupRange, ...]


@dataclass(frozen=True, slots=True)
class Serve:
    """The table of this epoch is committed: frames by an older one that ask for what is gone are stale."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Free:
    """Let go of these groups, once no client sends by an epoch before `epoch`."""

    call: int
    groups: tuple[GroupRange, ...]
    epoch: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Run canary inputs through these groups."""

    call: int
    groups: tuple[GroupRange, ...]


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse frames from now on."""

    call: int


@dataclass(frozen=True, slots=True)
class Hello:
    """What the compute process found out before it listened.

    Attributes:
        weights_digest: 32 bytes; fingerprint: hexadecimal digest of canary outputs.
        layer_count: of the model; layout: how each is cut; group_bytes: of one group of one layer.
        unit_cost_s: and token_cost_s, measured.
        capacity_bytes: that weights may take.
        data_endpoints: where frames go, best first.
    """

    weights_digest: bytes
    fingerprint: str
    layer_count: int
    layout: FfnLayout
    group_bytes: int
    unit_cost_s: float
    token_cost_s: float
    capacity_bytes: int
    data_endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Digest:
    """Canary output of one group."""

    layer: int
    group: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """A command was carried out; `digests` where it was a Probe."""

    call: int
    loaded: tuple[GroupRange, ...]
    loaded_bytes: int
    digests: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A command was refused."""

    call: int
    code: str
    reason: str
    message: str

    @classmethod
    def of(cls, call: int, error: KatsuraError) -> Failed:
        """An error as it crosses the pipe."""
        return cls(call, error.code, error.reason.value, error.message)

    def error(self) -> KatsuraError:
        """Back again."""
        return BY_CODE.get(self.code, InternalError)(self.message, reason=Reason(self.reason))


@dataclass(frozen=True, slots=True)
class TracedStep:
    """The frames of one traced step of one client, together: one span tells what thirty would."""

    trace: str
    begin_ns: int
    end_ns: int
    step: int
    frames: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Report:
    """Since the last report: frames answered, frames given back, seconds spent computing; `clients` now."""

    clients: int
    frames: int = 0
    nacks: int = 0
    seconds: float = 0.0
    steps: tuple[TracedStep, ...] = ()


Message = Start | Load | Fuse | Serve | Free | Probe | Drain | Hello | Done | Failed | Report
_KINDS: Mapping[str, type[Message]] = {
    kind.__name__: kind for kind in (Start, Load, Fuse, Serve, Free, Probe, Drain, Hello, Done, Failed, Report)
}


def write(message: Message) -> dict[str, Any]:
    """A message as the pipe carries it."""
    return {type(message).__name__: to_json(message)}


def read(message: Mapping[str, Any]) -> Message:
    """The inverse of `write`."""
    (name, body), *_ = message.items()
    kind: Any = _KINDS[name]
    read: Message = from_json(kind, body)
    return read
