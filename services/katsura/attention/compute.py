"""The compute process: listens, schedules, computes, draws, commits, reports. One thread, no asyncio, no gRPC.

    drain the pipe -> expire -> plan -> run the layers -> draw -> commit -> one report
         ^                                   |
         |   the pool has no copy of a group v
         +------------------- repeal the step, listen for a table, run it again

Commands, cancellations and deadlines therefore take effect between two steps. A step that is repealed has changed
nothing that was committed; its sequences go on when a member is back, or fail at their own deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from katsura.attention import messages
from katsura.attention.core.intake import Intake
from katsura.attention.core.plan import Drew, Failed, Opened, StepPlan
from katsura.attention.draw import Drawer, draw_all, make_drawer
from katsura.attention.messages import Answer, Command, Report, Timing
from katsura.attention.runner import Ffn, Runner
from katsura.domain.errors import InternalError, KatsuraError, TemporaryError
from katsura.domain.ids import Incarnation
from katsura.domain.tables import ExpertTable
from katsura.model.sampling import Sampled
from katsura.wire.pipe import PeerDiedError, Pipe

EXPIRE_EVERY_S = 0.02
"""How often deadlines and keep times are looked at while steps run."""
IDLE_WAIT_S = 0.25
"""How long a shard without work listens before it looks at its keep times."""
PAUSED_WAIT_S = 0.02
"""How long a shard that cannot reach its members listens before it tries the step again."""


class MemberPool(Ffn, Protocol):
    """The expert members, as the compute process sees them."""

    transport_s: list[float]
    """Seconds on the way since the start, by layer: the members' own time is not in it."""

    def begin(self, incarnation: Incarnation, step: int, deadline_s: float, trace: str) -> None:
        """Name the step that the next frames belong to; `deadline_s` is its earliest sequence's (monotonic)."""
        ...

    def turn_to(self, table: ExpertTable | None) -> None:
        """Use this table from the next step on."""
        ...

    def state(self) -> messages.Pool:
        """Epoch, what is missing, and how each member is reached."""
        ...


class Compute:
    """The loop. `pool` is None where the experts are in this process."""

    def __init__(
        self, pipe: Pipe, intake: Intake, runner: Runner, pool: MemberPool | None, now: Callable[[], float]
    ) -> None:
        self._pipe, self._intake, self._runner, self._pool, self._now = pipe, intake, runner, pool, now
        self._incarnation = Incarnation(0)
        self._drawers: dict[str, Drawer] = {}
        self._answers: list[Answer] = []
        self._sampled: dict[str, Sampled] = {}
        self._snapshot = False
        self._told_pool: messages.Pool | None = None
        self._told_load = intake.load()
        self._told_paused = ""
        self._expire_at_s = 0.0

    def run(self) -> None:
        """Work until the RPC process is gone."""
        wait_s: float = 0.0
        try:
            while True:
                wait_s = self.turn(wait_s)
        except PeerDiedError:
            return

    def turn(self, wait_s: float) -> float:
        """Listen for at most `wait_s`, compute at most one step, report; returns how long to listen next."""
        self._listen(wait_s)
        self._expire(wait_s > 0)
        plan = self._intake.schedule.plan(self._now())
        timing, paused = (None, "") if plan is None else self._step(plan)
        self._report(timing, paused)
        if plan is None:
            return IDLE_WAIT_S
        return PAUSED_WAIT_S if paused else 0.0

    def _listen(self, wait_s: float) -> None:
        message = self._pipe.receive(wait_s)
        while message is not None:
            command = messages.read_command(message)
            try:
                self._obey(command)
            except KatsuraError as error:
                call = command.request.call if isinstance(command, messages.Generate) else getattr(command, "call", 0)
                self._answers.append(Failed(call, error))
            message = self._pipe.receive(0.0)

    def _obey(self, command: Command) -> None:
        intake, now_s = self._intake, self._now()
        match command:
            case messages.Generate():
                self._generate(command)
            case messages.Open(call, request_id, owner, program, name, tokens, keep_s, deadline_s):
                intake.open(call, request_id, owner, program, name, tokens, keep_s, deadline_s, now_s)
            case messages.Fork(call, request_id, owner, name, new_ids, length, deadline_s):
                intake.fork(call, request_id, owner, name, new_ids, length, deadline_s)
            case messages.Truncate(call, owner, name, length):
                self._answers.append(Opened(call, (intake.truncate(owner, name, length, now_s),)))
            case messages.Delete(call, owner, name):
                intake.delete(owner, name)
                self._answers.append(messages.Done(call))
            case messages.DropPages(call, owner, names, all_pages):
                self._answers.append(messages.Done(call, intake.drop_pages(owner, list(names), all_pages)))
            case messages.Cancel(call):
                intake.cancel(call, now_s)
            case messages.Drain(evict):
                intake.draining = True
                if evict:
                    intake.evict_all()
            case messages.Snapshot():
                self._snapshot = True
            case messages.Start(incarnation):
                self._incarnation = Incarnation(incarnation)
            case messages.Tables(table):
                if self._pool is not None:
                    self._pool.turn_to(table)

    def _generate(self, command: messages.Generate) -> None:
        request, vocab = command.request, self._intake.limits.vocab_size
        drawn = [resumed.tokens for resumed in request.resumed] or [()] * len(request.new_ids)
        drawers = [
            make_drawer(command.sampling, choice, tokens, vocab, command.trace) for choice, tokens in enumerate(drawn)
        ]
        for choice, name in self._intake.generate(request).items():
            self._drawers[name] = drawers[choice]
        if len(self._drawers) > 64 + 2 * len(self._intake.sequences):
            self._drawers = {name: d for name, d in self._drawers.items() if name in self._intake.sequences}

    def _expire(self, waited: bool) -> None:
        now_s = self._now()
        if waited or now_s >= self._expire_at_s:
            self._intake.expire(now_s, self._told_paused)
            self._expire_at_s = now_s + EXPIRE_EVERY_S

    def _step(self, plan: StepPlan) -> tuple[Timing | None, str]:
        begin_ns, begin_s = time.time_ns(), time.perf_counter()
        transport_s = 0.0
        if self._pool is not None:
            self._pool.begin(self._incarnation, plan.step, self._deadline_s(plan), self._trace(plan))
            transport_s = -sum(self._pool.transport_s)
        try:
            result = self._runner.run(plan)
        except TemporaryError as error:
            return None, error.message
        except KatsuraError as error:
            self._fail(plan, error)
            return None, ""
        drawing = [row for row in plan.rows if row.draws]
        names = [row.sequence_id for row in drawing]
        if drawing:
            positions = [row.start + len(row.tokens) for row in drawing]
            with torch.inference_mode():
                self._sampled, broken = draw_all(result.logits, names, positions, self._drawers)
            for name, trouble in broken.items():
                self._intake.fail(name, trouble, self._now())
            if broken:
                plan = replace(plan, rows=tuple(row for row in plan.rows if row.sequence_id not in broken))
        tokens = {name: sampled.token for name, sampled in self._sampled.items()}
        self._intake.schedule.commit(plan, tokens, self._now())
        return Timing(
            step=plan.step,
            begin_ns=begin_ns,
            seconds=time.perf_counter() - begin_s,
            ffn_seconds=result.ffn_seconds,
            transport_seconds=transport_s + (sum(self._pool.transport_s) if self._pool is not None else 0.0),
            token_count=plan.token_count,
            row_count=len(plan.rows),
            draw_count=len(drawing),
            context_count=sum(row.start + len(row.tokens) for row in drawing),
        ), ""

    def _fail(self, plan: StepPlan, error: KatsuraError) -> None:
        for row in plan.rows:
            if row.sequence_id in self._intake.sequences:
                self._intake.fail(row.sequence_id, InternalError(error.message, reason=error.reason), self._now())

    def _deadline_s(self, plan: StepPlan) -> float:
        return min(self._intake.sequences[row.sequence_id].deadline_s for row in plan.rows)

    def _trace(self, plan: StepPlan) -> str:
        drawers = (self._drawers.get(row.sequence_id) for row in plan.rows)
        return next((drawer.trace for drawer in drawers if drawer is not None and drawer.trace), "")

    def _report(self, timing: Timing | None, paused: str) -> None:
        for outcome in self._intake.take_outcomes(self._now()):
            sampled = self._sampled[outcome.sequence_id] if isinstance(outcome, Drew) else None
            top = () if sampled is None else sampled.top
            self._answers.append(messages.answer_of(outcome, sampled.logprob if sampled else None, top))
        self._sampled = {}
        log = self._intake.cache.events
        batch = messages.batch_of(log.take(self._incarnation))
        pool, load = self._pool.state() if self._pool is not None else None, self._intake.load()
        told = (self._told_pool, self._told_load, self._told_paused)
        if not (self._answers or timing or batch or self._snapshot) and told == (pool, load, paused):
            return
        names = tuple(self._intake.cache.index.names()) if self._snapshot else ()
        report = Report(
            answers=tuple(self._answers),
            load=load,
            batch=batch,
            snapshot=(log.last_sequence, names) if self._snapshot else None,
            timing=timing,
            pool=pool if pool != self._told_pool else None,
            paused=paused,
        )
        self._answers, self._snapshot = [], False
        self._told_pool, self._told_load, self._told_paused = pool, load, paused
        self._pipe.send(messages.write_report(report))
