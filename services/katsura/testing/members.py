"""Expert members for tests: real compute processes that a test loads by hand, and tables that name them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange
from katsura.domain.tables import Assignment, ExpertTable
from katsura.experts import messages
from katsura.wire.pipe import Pipe, spawn

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


@dataclass
class MemberProcess:
    """`katsura.experts.worker` without its RPC process: the test speaks for that. End it with `kill`."""

    name: str
    environment: dict[str, str]
    incarnation: Incarnation = field(init=False)
    hello: messages.Hello = field(init=False)
    _calls: itertools.count[int] = field(default_factory=itertools.count)

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
        """Hold these groups too; returns when they are loaded, raises what was wrong."""
        return self.ask(messages.Load(next(self._calls), groups))

    def ask(self, command: messages.Load | messages.Free | messages.Probe | messages.Drain) -> messages.Done:
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


def table_of(epoch: int, member: MemberProcess, assignments: Sequence[Assignment]) -> ExpertTable:
    """A table over `assignments` for the model that `member` serves."""
    hello = member.hello
    return ExpertTable(DeploymentName("tiny"), "", Epoch(epoch), hello.layer_count, hello.layout, tuple(assignments))
