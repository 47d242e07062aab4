"""The compute process of a member: answers frames, and between them loads and frees groups. One thread.

    poll clients and pipe -> answer what is there -> load or free one group -> report now and then

A member never waits for a frame that is not there, and never holds one while it waits for anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from katsura.domain.cost import FrameCost
from katsura.domain.errors import FailedPreconditionError, KatsuraError
from katsura.domain.ids import Epoch
from katsura.domain.shape import Numerics
from katsura.experts import messages
from katsura.experts.canary import canary_digest
from katsura.experts.core.residency import Key, LastFrame, keys_of, may_free, ranges_of
from katsura.experts.core.window import Waiting, arrange
from katsura.experts.groups import Groups
from katsura.model.linear import TORCH_DTYPE
from katsura.weights.reader import Checkpoint
from katsura.wire.frame import Dispatch, GroupSums, decode_dispatch, encode_partial, partial_bytes
from katsura.wire.header import (
    DIGEST_BYTES,
    BadFrameError,
    Header,
    Kind,
    NackReason,
    read_header,
    write_control,
)
from katsura.wire.pipe import Pipe
from katsura.wire.server import Server
from katsura.wire.transport import Request

IDLE_WAIT_S = 0.25
REPORT_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Identity:
    """What every frame is checked against, and what a WELCOME says."""

    incarnation: int
    weights_digest: bytes
    revision_id: str
    fingerprint: str
    cost: FrameCost
    numerics: Numerics


@dataclass(slots=True)
class _Arrived:
    request: Request
    frame: Dispatch
    at_s: float
    at_ns: int


@dataclass(slots=True)
class _Freeing:
    call: int
    epoch: Epoch
    keys: set[Key]


class _NackError(Exception):
    """A frame that is given back undone."""

    def __init__(self, why: NackReason, message: str) -> None:
        super().__init__(message)
        self.why = why
        self.message = message


class Member:
    """The loop and what it decides from frame to frame."""

    def __init__(
        self, pipe: Pipe, identity: Identity, groups: Groups, checkpoint: Checkpoint, now: Callable[[], float]
    ) -> None:
        self._pipe, self._identity, self._groups, self._checkpoint, self._now = pipe, identity, groups, checkpoint, now
        self._epoch = 0
        self._draining = False
        self._clients: dict[int, LastFrame] = {}
        self._loads: deque[tuple[int, deque[Key]]] = deque()
        self._frees: deque[_Freeing] = deque()
        self._frames = self._nacks = 0
        self._seconds = 0.0
        self._steps: dict[tuple[str, int], messages.TracedStep] = {}
        self._reported_s = 0.0
        self._reported_clients = -1

    def admit(self, hello: Mapping[str, Any]) -> Mapping[str, Any]:
        """Welcome shards of our own revision."""
        asked, ours = hello.get("revision_id"), self._identity
        if asked != ours.revision_id:
            raise FailedPreconditionError(f"this member serves revision {ours.revision_id}, not {asked!r}")
        if self._draining:
            raise FailedPreconditionError("this member is draining")
        return {
            "incarnation": str(ours.incarnation),
            "fingerprint": ours.fingerprint,
            "unit_cost_s": ours.cost.unit_s,
            "token_cost_s": ours.cost.token_s,
        }

    def run(self, server: Server) -> None:
        """Serve until the RPC process is gone (PeerDiedError)."""
        server.add(self._pipe.fileno(), lambda events: None)
        with torch.inference_mode():
            while True:
                self.turn(server, 0.0 if self._loads else IDLE_WAIT_S)

    def turn(self, server: Server, wait_s: float) -> None:
        """One round."""
        requests = server.poll(wait_s)
        while (message := self._pipe.receive(0.0)) is not None:
            self._obey(messages.read(message))
        self._serve(requests)
        self._load_one()
        self._free(server)
        self._report(server.client_count)

    # Frames

    def _serve(self, requests: Sequence[Request]) -> None:
        arrived = []
        for request in requests:
            header = None
            try:
                header = read_header(request.frame)
                arrived.append(_Arrived(request, self._read(request, header), self._now(), time.time_ns()))
            except BadFrameError as error:
                self._give_back(request, header, _NackError(NackReason.MALFORMED, error.message))
            except _NackError as nack:
                self._give_back(request, header, nack)
        if len(arrived) == 1:
            self._answer(arrived)
        elif arrived:
            self._serve_window(arrived)

    def _serve_window(self, arrived: Sequence[_Arrived]) -> None:
        waiting = [
            Waiting(i, a.frame.header.layer, a.at_s + a.frame.header.time_us / 1e6, *self._size(a.frame))
            for i, a in enumerate(arrived)
        ]
        fuse = self._identity.numerics is Numerics.INVARIANT
        window = arrange(waiting, self._now(), self._identity.cost, fuse)
        for why, indices in ((NackReason.EXPIRED, window.expired), (NackReason.OVERLOADED, window.overloaded)):
            for index in indices:
                nack = _NackError(why, "no time is left for it here")
                self._give_back(arrived[index].request, arrived[index].frame.header, nack)
        for batch in window.batches:
            self._answer([arrived[index] for index in batch])

    def _read(self, request: Request, header: Header) -> Dispatch:
        """A frame that can be computed. Raises BadFrameError or _NackError."""
        holdings = self._groups.holdings
        shape, layout = holdings.config.shape, holdings.layout
        if header.kind is not Kind.DISPATCH:
            raise BadFrameError(f"members take DISPATCH frames, not {header.kind.name}")
        if header.digest != self._identity.weights_digest[:DIGEST_BYTES]:
            raise _NackError(NackReason.WRONG_WEIGHTS, "this member holds other weights")
        if self._draining:
            raise _NackError(NackReason.DRAINING, "this member is draining")
        frame = decode_dispatch(request.frame, header)
        if header.width != shape.hidden_size or frame.hidden.dtype != TORCH_DTYPE[holdings.kernels.dtype]:
            raise BadFrameError(f"hidden is {header.width} wide in {frame.hidden.dtype}, which this model is not")
        if header.layer >= shape.layer_count or frame.groups[-1] >= layout.group_count:
            raise BadFrameError(f"layer {header.layer}, groups {frame.groups} are not all of this model's")
        if shape.is_moe != (frame.routes is not None):
            raise BadFrameError("routes belong to a mixture of experts, and only there")
        self._check_units(frame)
        missing = [group for group in frame.groups if (header.layer, group) not in self._groups.keys]
        self._clients[request.client] = LastFrame(header.epoch, self._now())
        if missing:
            why = NackReason.STALE_EPOCH if header.epoch < self._epoch else NackReason.NOT_LOADED
            raise _NackError(why, f"layer {header.layer}, groups {missing} are not loaded")
        if len(request.reply_buffer) < self._reply_bytes(frame):
            raise BadFrameError("the reply slot is shorter than the answer")
        return frame

    def _check_units(self, frame: Dispatch) -> None:
        if frame.routes is None:
            return
        for index, group in enumerate(frame.groups):
            units = frame.routes.units[frame.routes.span(index)]
            own = self._groups.holdings.layout.units_of(group)
            if len(units) and not (own.start <= int(units.min()) and int(units.max()) < own.stop):
                raise BadFrameError(f"a route of group {group} names a unit of another group")

    def _reply_bytes(self, frame: Dispatch) -> int:
        sums = len(frame.groups) * frame.header.n_tokens if frame.routes is None else frame.header.n_routes
        return partial_bytes(sums, frame.header.width, len(frame.groups), frame.routes is None)

    def _size(self, frame: Dispatch) -> tuple[int, int]:
        if frame.routes is None:
            units = len(frame.groups) * self._groups.holdings.layout.units_per_group
            return units, units * frame.header.n_tokens
        return len(set(frame.routes.units.tolist())), frame.header.n_routes

    def _answer(self, batch: Sequence[_Arrived]) -> None:
        begin_s = self._now()
        answers = self._groups.compute([arrived.frame for arrived in batch])
        self._seconds += self._now() - begin_s
        for arrived, parts in zip(batch, answers, strict=True):
            self._reply(arrived, parts)

    def _reply(self, arrived: _Arrived, parts: Sequence[GroupSums]) -> None:
        member_us = int((self._now() - arrived.at_s) * 1e6)
        request = arrived.request
        request.answer(encode_partial(request.reply_buffer, arrived.frame, parts, member_us))
        self._frames += 1
        if arrived.frame.trace:
            self._trace(arrived)

    def _trace(self, arrived: _Arrived) -> None:
        frame, trace = arrived.frame, arrived.frame.trace.decode("ascii", "replace")
        key = (trace, frame.header.step)
        past = self._steps.get(key)
        self._steps[key] = messages.TracedStep(
            trace,
            past.begin_ns if past else arrived.at_ns,
            time.time_ns(),
            frame.header.step,
            (past.frames if past else 0) + 1,
            frame.header.n_tokens,
        )

    def _give_back(self, request: Request, header: Header | None, nack: _NackError) -> None:
        self._nacks += 1
        body = {"reason": nack.why, "message": nack.message, "epoch": self._epoch}
        request.answer(write_control(request.reply_buffer, Kind.NACK, body, header))

    # Commands

    def _obey(self, message: messages.Message) -> None:
        match message:
            case messages.Load(call, groups):
                keys = sorted(keys_of(groups))
                if self._allowed(call, keys):
                    self._loads.append((call, deque(keys)))
                    for freeing in self._frees:
                        freeing.keys.difference_update(keys)
            case messages.Serve(epoch):
                self._epoch = max(self._epoch, epoch)
            case messages.Free(call, groups, epoch):
                self._frees.append(_Freeing(call, Epoch(epoch), set(keys_of(groups))))
            case messages.Probe(call, groups):
                self._probe(call, sorted(keys_of(groups)) or sorted(self._groups.keys))
            case messages.Drain(call):
                self._draining = True
                self._done(call)

    def _allowed(self, call: int, keys: Sequence[Key]) -> bool:
        try:
            self._groups.check([*keys, *(key for _, pending in self._loads for key in pending)])
        except KatsuraError as error:
            self._pipe.send(messages.write(messages.Failed.of(call, error)))
            return False
        return True

    def _load_one(self) -> None:
        if not self._loads:
            return
        call, keys = self._loads[0]
        try:
            if keys:
                self._groups.load(self._checkpoint, keys.popleft())
        except KatsuraError as error:
            self._loads.popleft()
            self._pipe.send(messages.write(messages.Failed.of(call, error)))
            return
        if not keys:
            self._loads.popleft()
            self._done(call)

    def _free(self, server: Server) -> None:
        if len(self._clients) > server.client_count:
            self._clients = {client: last for client, last in self._clients.items() if server.has_client(client)}
        while self._frees and may_free(self._clients, self._frees[0].epoch, self._now()):
            freeing = self._frees.popleft()
            for key in freeing.keys:
                self._groups.free(key)
            self._done(freeing.call)

    def _probe(self, call: int, keys: Sequence[Key]) -> None:
        holdings = self._groups.holdings
        try:
            digests = tuple(
                messages.Digest(*key, canary_digest(self._groups.held(key), holdings.config.shape, holdings.kernels))
                for key in keys
            )
        except KatsuraError as error:
            self._pipe.send(messages.write(messages.Failed.of(call, error)))
            return
        self._done(call, digests)

    def _done(self, call: int, digests: tuple[messages.Digest, ...] = ()) -> None:
        done = messages.Done(call, ranges_of(self._groups.keys), self._groups.loaded_bytes, digests)
        self._pipe.send(messages.write(done))

    def _report(self, clients: int) -> None:
        now_s = self._now()
        told = self._frames or self._nacks or clients != self._reported_clients
        if not told or now_s - self._reported_s < REPORT_EVERY_S:
            return
        report = messages.Report(clients, self._frames, self._nacks, self._seconds, tuple(self._steps.values()))
        self._frames = self._nacks = 0
        self._seconds, self._steps = 0.0, {}
        self._reported_s, self._reported_clients = now_s, clients
        self._pipe.send(messages.write(report))
