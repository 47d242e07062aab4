"""Expert members for tests: on a thread, or real compute processes that a test loads by hand; tables over them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch

from katsura.domain.cost import FrameCost
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange, revision_id
from katsura.domain.shape import DType, FfnLayout, Numerics, layout_for
from katsura.domain.tables import Assignment, ExpertTable
from katsura.experts import messages
from katsura.experts.frames import Frames, Identity
from katsura.experts.groups import Groups, Holdings
from katsura.weights.kernels import kernel_plan
from katsura.weights.load import read_config
from katsura.weights.manifest import weights_digest
from katsura.weights.reader import Checkpoint
from katsura.wire import shm
from katsura.wire.header import WIRE_VERSION
from katsura.wire.pipe import PeerDiedError, Pipe, spawn
from katsura.wire.server import Server
from katsura.wire.transport import Limits

_START_LIMIT_S = 60.0
_INCARNATIONS = itertools.count(1)


def member_environment(folder: Path, name: str, socket_dir: Path, **variables: object) -> dict[str, str]:
    """The variables that a member needs, and `variables` (`FFN_GROUPS=2` sets KATSURA_FFN_GROUPS)."""
    own = {
        "INTERNAL_TOKEN": "t",
        "DEPLOYMENT": "tiny",
        "MODEL_PATH": folder,
        "INSTANCE_ID": name,
        "SOCKET_DIR": socket_dir,
        "CAPACITY_BYTES": 1 << 30,
    }
    return {f"KATSURA_{key}": str(value) for key, value in (own | variables).items()}


class InlineMember:
    """A member on a thread of this process, with everything loaded: what a pool is tried against quickly.

    Args:
        folder: model folder.
        name: of the member.
        socket_dir: where it listens.
        slices, groups: how the FFN is cut.
        life: incarnation.
    """

    def __init__(
        self, folder: Path, name: str, socket_dir: Path, slices: int = 4, groups: int = 4, life: int = 1
    ) -> None:
        self.name, self.incarnation = name, Incarnation(life)
        self.holdings = holdings_of(folder, slices, groups)
        self.digest = weights_digest(folder)
        layout, kernels = self.holdings.layout, self.holdings.kernels
        self.identity = Identity(
            life,
            self.digest,
            revision_id(self.digest, kernels.dtype, kernels.numerics, layout, WIRE_VERSION),
            "print",
            FrameCost(1e-5, 1e-7),
            kernels.numerics,
        )
        self.groups = Groups(self.holdings, Checkpoint(folder))
        for layer in range(self.holdings.config.shape.layer_count):
            for group in range(layout.group_count):
                self.groups.load((layer, group))
        self.frames = Frames(self.identity, self.groups, time.monotonic)
        self.endpoint = f"shm:{socket_dir}/{name}.sock"
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Listen and serve."""
        server = self.server = Server(Limits(4, 1 << 22, 1 << 24), self.frames.admit)
        shm.listen(server, self.endpoint.removeprefix("shm:"))
        self._rings, rung = socket.socketpair()
        stopped: list[bool] = []
        server.add(rung.fileno(), lambda events: stopped.append(True))

        def serve() -> None:
            with torch.inference_mode():
                while not stopped:
                    self.frames.serve(server.poll(_START_LIMIT_S))
            server.close()
            rung.close()

        self._thread = threading.Thread(target=serve)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End all channels and stop listening, as death does."""
        if self._thread is not None:
            self._rings.close()
            self._thread.join()
            self._thread = None

    def assignment(
        self, rank: int, primary: Sequence[GroupRange], alternate: Sequence[GroupRange] = (), fingerprint: str = "print"
    ) -> Assignment:
        """A line of a table for this member."""
        ranges = tuple(primary), tuple(alternate)
        return Assignment(InstanceId(self.name), self.incarnation, rank, (self.endpoint,), fingerprint, *ranges)


def holdings_of(folder: Path, slices: int, groups: int, capacity_bytes: int = 1 << 30) -> Holdings:
    """An f32, invariant model as a member opens it."""
    config = read_config(folder)
    layout = layout_for(config.shape, slices, groups)
    kernels = kernel_plan(folder, config.shape, layout, DType.F32, Numerics.INVARIANT, now=time.perf_counter)
    return Holdings(folder, config, layout, kernels, capacity_bytes)


@dataclass
class MemberProcess:
    """`katsura.experts.worker` without its RPC process: the test speaks for that. End it with `kill`."""

    name: str
    environment: dict[str, str]
    incarnation: Incarnation = field(init=False)
    hello: messages.Hello = field(init=False)
    _calls: itertools.count[int] = field(default_factory=itertools.count)
    _reader: threading.Thread | None = None

    def start(self) -> MemberProcess:
        """Start, or start again as another life that holds nothing."""
        self.incarnation = Incarnation(next(_INCARNATIONS))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KATSURA_")}
        self._process, sock = spawn("katsura.experts.worker", kept | self.environment)
        self._pipe = Pipe(sock)
        self._pipe.send(messages.write(messages.Start(self.incarnation)))
        first = self._pipe.receive(_START_LIMIT_S)
        hello = messages.read(first or {"Failed": '{"call":0,"code":"","reason":"BUG","message":"no greeting"}'})
        if isinstance(hello, messages.Failed):
            raise hello.error()
        assert isinstance(hello, messages.Hello)
        self.hello = hello
        return self

    def load(self, *groups: GroupRange) -> messages.Done:
        """Hold these groups too, to be asked for together; returns when they are there, raises what was wrong."""
        self.ask(messages.Load(next(self._calls), groups))
        return self.ask(messages.Fuse(next(self._calls), groups))

    def ask(
        self, command: messages.Load | messages.Fuse | messages.Free | messages.Probe | messages.Drain
    ) -> messages.Done:
        """Send a command and wait for its end."""
        self._pipe.send(messages.write(command))
        while True:
            message = self._pipe.receive(_START_LIMIT_S)
            assert message is not None, "the member did not answer"
            match messages.read(message):
                case messages.Done(call) as done if call == command.call:
                    return done
                case messages.Failed(call) as failed if call == command.call:
                    raise failed.error()

    def listen(self) -> None:
        """Read its reports on a thread from now on, as its RPC process does: one that nobody reads ends itself."""

        def read() -> None:
            with suppress(PeerDiedError):
                while True:
                    self._pipe.receive(None)

        self._reader = threading.Thread(target=read)
        self._reader.start()

    def tell(self, command: messages.Message) -> None:
        """Send a command that has no answer."""
        self._pipe.send(messages.write(command))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal (SIGSTOP, SIGCONT)."""
        os.kill(self._process.pid, number)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process itself."""
        return self._process

    def hang_up(self) -> None:
        """Close the pipe, as the death of its RPC process does."""
        self._pipe.close()

    def kill(self) -> None:
        """`kill -9`, and wait until it is dead."""
        self._process.kill()
        self._process.wait()
        if self._reader is not None:
            self._reader.join()
        self._pipe.close()

    def assignment(
        self, rank: int, primary: Sequence[GroupRange], alternate: Sequence[GroupRange] = (), fingerprint: str = ""
    ) -> Assignment:
        """A line of a table for this life of the member."""
        return Assignment(
            InstanceId(self.name),
            self.incarnation,
            rank,
            self.hello.data_endpoints,
            fingerprint or self.hello.fingerprint,
            tuple(primary),
            tuple(alternate),
        )


def table_of(epoch: int, layer_count: int, layout: FfnLayout, *assignments: Assignment) -> ExpertTable:
    """A table over `assignments`."""
    return ExpertTable(DeploymentName("tiny"), "", Epoch(epoch), layer_count, layout, assignments)
