"""The compute process of a member: answers frames, and between them loads, fuses and frees groups. One thread.

    poll clients and pipe -> answer what is there -> load, fuse or free one group -> report now and then

A member never waits for a frame that is not there, and never holds one while it waits for anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from katsura.domain.errors import KatsuraError
from katsura.domain.ids import Epoch
from katsura.experts import messages
from katsura.experts.canary import canary_digest
from katsura.experts.core.residency import Key, keys_of, may_free, ranges_of
from katsura.experts.frames import Frames
from katsura.experts.groups import Groups
from katsura.wire.pipe import Pipe
from katsura.wire.server import Server

IDLE_WAIT_S = 0.25
REPORT_EVERY_S = 0.25


@dataclass(slots=True)
class _Job:
    """Work done piece by piece between frames: groups to load, or (layer, groups) to fuse."""

    call: int
    loads: deque[Key] = field(default_factory=deque)
    fuses: deque[tuple[int, tuple[int, ...]]] = field(default_factory=deque)


@dataclass(slots=True)
class _Freeing:
    call: int
    epoch: Epoch
    keys: set[Key]


class Member:
    """The loop, and what it does for the RPC process."""

    def __init__(self, pipe: Pipe, frames: Frames, groups: Groups, now: Callable[[], float]) -> None:
        self._pipe, self._frames, self._groups, self._now = pipe, frames, groups, now
        self._spoken = True
        self._jobs: deque[_Job] = deque()
        self._frees: deque[_Freeing] = deque()
        self._report_at_s = 0.0
        self._reported_clients = -1

    def run(self, server: Server) -> None:
        """Serve until the RPC process is gone (PeerDiedError)."""
        self.attach(server)
        with torch.inference_mode():
            while True:
                self.turn(server, 0.0 if self._jobs else IDLE_WAIT_S)

    def attach(self, server: Server) -> None:
        """Hear the pipe inside the server's poll."""

        def spoken(events: int) -> None:
            self._spoken = True

        server.add(self._pipe.fileno(), spoken)

    def turn(self, server: Server, wait_s: float) -> None:
        """One round."""
        self._frames.serve(server.poll(wait_s))
        if self._spoken:
            self._spoken = False
            while (message := self._pipe.receive(0.0)) is not None:
                self._obey(messages.read(message))
        if self._jobs:
            self._work()
        if self._frees:
            self._free()
        now_s = self._now()
        if now_s >= self._report_at_s:
            self._report_at_s = now_s + REPORT_EVERY_S
            self._report(server)

    def _obey(self, message: messages.Message) -> None:
        match message:
            case messages.Load(call, groups):
                self._begin_load(call, sorted(keys_of(groups)))
            case messages.Fuse(call, ranges):
                pieces = [(layer, r.groups) for r in ranges for layer in range(r.layer_start, r.layer_end)]
                self._jobs.append(_Job(call, fuses=deque(pieces)))
            case messages.Serve(epoch):
                self._frames.epoch = max(self._frames.epoch, epoch)
            case messages.Free(call, groups, epoch):
                self._frees.append(_Freeing(call, Epoch(epoch), set(keys_of(groups))))
            case messages.Probe(call, groups):
                self._probe(call, sorted(keys_of(groups)) or sorted(self._groups.keys))
            case messages.Drain(call):
                self._frames.draining = True
                self._done(call)

    def _begin_load(self, call: int, keys: Sequence[Key]) -> None:
        try:
            self._groups.check([*keys, *(key for job in self._jobs for key in job.loads)])
        except KatsuraError as error:
            self._fail(call, error)
            return
        self._jobs.append(_Job(call, loads=deque(keys)))
        for freeing in self._frees:
            freeing.keys.difference_update(keys)

    def _work(self) -> None:
        """One piece of the first job; frames are answered between two pieces."""
        job = self._jobs[0]
        try:
            if job.loads:
                self._groups.load(job.loads.popleft())
            elif job.fuses:
                self._groups.fuse(*job.fuses.popleft())
        except KatsuraError as error:
            self._jobs.popleft()
            self._fail(job.call, error)
            return
        if not job.loads and not job.fuses:
            self._jobs.popleft()
            self._done(job.call)

    def _free(self) -> None:
        while self._frees and may_free(self._frames.clients, self._frees[0].epoch, self._now()):
            freeing = self._frees.popleft()
            for key in freeing.keys:
                self._groups.free(key)
            self._done(freeing.call)

    def _probe(self, call: int, keys: Sequence[Key]) -> None:
        try:
            digests = tuple(messages.Digest(*key, self._canary(key)) for key in keys)
        except KatsuraError as error:
            self._fail(call, error)
            return
        self._done(call, digests)

    def _canary(self, key: Key) -> bytes:
        holdings = self._groups.holdings
        of_group = partial(self._groups.partial, key)
        return canary_digest(of_group, holdings.layout.units_of(key[1]), holdings.config.shape, holdings.kernels)

    def _done(self, call: int, digests: tuple[messages.Digest, ...] = ()) -> None:
        done = messages.Done(call, ranges_of(self._groups.keys), self._groups.loaded_bytes, digests)
        self._pipe.send(messages.write(done))

    def _fail(self, call: int, error: KatsuraError) -> None:
        self._pipe.send(messages.write(messages.Failed.of(call, error)))

    def _report(self, server: Server) -> None:
        clients = server.client_count
        if clients != self._reported_clients:
            self._frames.forget_all_but(server.has_client)
        report = self._frames.tally(clients)
        if report is not None or clients != self._reported_clients:
            self._reported_clients = clients
            self._pipe.send(messages.write(report or messages.Report(clients)))
