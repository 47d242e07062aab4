"""A shard's compute process for tests: in this process and turned by hand, or a real one that can be killed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from katsura.attention import messages
from katsura.attention.compute import Compute
from katsura.attention.config import ShardConfig
from katsura.attention.core import intake
from katsura.attention.core.plan import Failed, Finish, StepPlan
from katsura.attention.core.sequence import Owner, Program
from katsura.attention.messages import Answer, Command, Drawn, Report, Sampling
from katsura.attention.pool import Pool, make_pool
from katsura.attention.runner import Model, Runner, StepResult
from katsura.attention.worker import limits_of
from katsura.domain.pages import page_namespace
from katsura.domain.shape import DType, Numerics, layout_for
from katsura.domain.tables import ExpertTable
from katsura.engine.worker import load_experts
from katsura.model.kv import KvArena
from katsura.weights.load import read_config
from katsura.wire.pipe import Pipe

OWNER = Owner("t", page_namespace(b"", DType.F32, Numerics.INVARIANT, 16, b"salt"))


def environment(folder: Path, **variables: object) -> dict[str, str]:
    """The variables that a shard needs, and `variables` (`PAGE_TOKENS=8` sets KATSURA_PAGE_TOKENS)."""
    own = {"INTERNAL_TOKEN": "t", "DEPLOYMENT": "tiny", "MODEL_PATH": folder, "KV_BYTES": 1 << 22} | variables
    return {f"KATSURA_{name}": str(value) for name, value in own.items()}


@dataclass
class Driver:
    """Speaks to a compute process as an RPC process does, one message at a time."""

    pipe: Pipe
    turn: Callable[[], None] = lambda: None
    reports: list[Report] = field(default_factory=list)
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    calls: int = 0
    wait_s: float = 1.0

    def tell(self, command: Command) -> None:
        """Send a command."""
        self.pipe.send(messages.write_command(command))

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        sampling: Sampling | None = None,
        choices: int = 1,
        deadline_s: float = 1e18,
        **more: Any,
    ) -> int:
        """Begin a generation; returns its call."""
        self.calls += 1
        ids = tuple(f"s{self.calls}.{choice}" for choice in range(choices))
        fields: dict[str, Any] = {
            "owner": OWNER,
            "program": Program(),
            "sequence_id": "",
            "stop_ids": (),
            "resumed": (),
        } | more
        request = intake.Generate(
            call=self.calls, new_ids=ids, tokens=tuple(prompt), new_tokens_max=count, deadline_s=deadline_s, **fields
        )
        self.tell(messages.Generate(request, sampling or Sampling()))
        return self.calls

    def ask(self, make: Callable[[int], Command]) -> Answer:
        """Send the command that `make` makes for a fresh call and wait for its answer; raises its failure."""
        self.calls += 1
        call = self.calls
        self.tell(make(call))
        self.until(lambda: call in self.answers)
        answer = self.answers[call][0]
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def tokens(self, call: int, choices: int = 1) -> list[list[int]]:
        """Wait until a generation has ended; the tokens of each choice. Raises its failure."""

        def ended() -> bool:
            told = self.answers.get(call, [])
            ends = sum(getattr(answer, "finish", None) is not None for answer in told)
            return ends == choices or any(isinstance(answer, Failed) for answer in told)

        self.until(ended)
        for answer in self.answers[call]:
            if isinstance(answer, Failed):
                raise answer.error
        drawn = [answer for answer in self.answers[call] if isinstance(answer, Drawn)]
        return [[answer.token for answer in drawn if answer.choice == choice] for choice in range(choices)]

    def finish(self, call: int) -> Finish | None:
        """How the last answer of a call ended."""
        return getattr(self.answers[call][-1], "finish", None)

    def until(self, done: Callable[[], bool], limit_s: float = 200.0) -> None:
        """Take reports until `done`."""
        limit = time.monotonic() + limit_s
        while not done():
            self.turn()
            message = self.pipe.receive(self.wait_s)
            if message is not None:
                self.note(messages.read_report(message))
            if time.monotonic() > limit:
                raise TimeoutError("the compute process did not get there")

    def note(self, report: Report) -> None:
        """Keep a report."""
        self.reports.append(report)
        for answer in report.answers:
            self.answers.setdefault(answer.call, []).append(answer)


@dataclass
class Recorder:
    """A runner that remembers the logits of every drawing row by (sequence, position)."""

    runner: Runner
    logits: dict[tuple[str, int], torch.Tensor] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)

    def run(self, plan: StepPlan) -> StepResult:
        """Run, and remember."""
        self.plans.append(plan)
        result = self.runner.run(plan)
        drawing = [row for row in plan.rows if row.draws]
        for row, logits in zip(drawing, result.logits, strict=True):
            self.logits[row.sequence_id, row.start + len(row.tokens) - 1] = logits.clone()
        return result


class InlineShard(Driver):
    """A compute process inside this one: every turn of its loop is made here.

    Args:
        folder: model folder.
        table: members that serve its FFNs; None computes them here, as a unified engine does.
        variables: settings (`PAGE_TOKENS=8` sets KATSURA_PAGE_TOKENS).
    """

    def __init__(self, folder: Path, table: ExpertTable | None = None, **variables: object) -> None:
        config = ShardConfig.from_env(environment(folder, **variables), "attention")
        layout = layout_for(read_config(folder).shape, config.ffn_slices, config.ffn_groups)
        model = Model.open(folder, layout, config.dtype, config.numerics, config.kernels_path)
        limits = limits_of(config, model)
        arena = KvArena(model.config, limits.page_count, limits.page_tokens, config.dtype)
        ffn, self._pool = load_experts(config, model) if table is None else make_pool(config, model)
        self.recorder = Recorder(Runner(model.config, model.decoder(arena), arena, ffn))
        ours, theirs = socket.socketpair()
        self.intake = intake.Intake(limits)
        runner: Any = self.recorder
        self.inline = Compute(Pipe(theirs), self.intake, runner, self._pool, time.monotonic)
        if self._pool is not None:
            self._pool.turn_to(table)
        super().__init__(Pipe(ours), self._turn, wait_s=0.0)
        self._theirs = theirs

    def _turn(self) -> None:
        self.inline.turn(0.0)

    def close(self) -> None:
        """Let go of both ends, and of the members."""
        if isinstance(self._pool, Pool):
            self._pool.close()
        self.pipe.close()
        self._theirs.close()
