"""The RPC process's side of a shard: calls in flight, the way to the compute process, and what the fleet is told.

    servicer --- Call ---> commands over the pipe ---> compute process
             <-- Call ---- reports, one per step  <---
                                |
                                +--> leases, KV events, snapshots --> hints store --> tables --> compute process

A call's answers queue without bound because what may be drawn for it is bounded; a queue that nobody reads for
`unread_s` is cancelled instead of filled.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.core.plan import Failed, Load
from katsura.attention.core.sequence import Owner
from katsura.attention.gauges import Gauges
from katsura.attention.messages import Answer, Command, Hello, Pool, Report, Timing
from katsura.domain.errors import CancelledError, KatsuraError, Reason, UnavailableError
from katsura.domain.ids import Incarnation, TenantId
from katsura.domain.leases import Revision, revision_id
from katsura.domain.pages import page_namespace
from katsura.domain.tenant import Tenant
from katsura.telemetry import log
from katsura.wire.header import WIRE_VERSION
from katsura.wire.pipe import AsyncPipe, PeerDiedError

_LOG = log.get(__name__)
INCARNATION_BITS = 63
PROBE_TENANT = Tenant(TenantId("katsura:probe"), bytes(32))
"""Whose pages a probe's are. The salts of real tenants are random, so its pages are nobody else's."""


class Call:
    """Answers to one call, in order, and whoever waits for them."""

    def __init__(self, number: int, now_s: float) -> None:
        self.number = number
        self.begun_s = now_s
        self._unread_since_s = now_s
        self._answers: deque[Answer] = deque()
        self._error: KatsuraError | None = None
        self._ready = asyncio.Event()

    def is_unread(self, since_s: float) -> bool:
        """Whether an answer waits to be taken since `since_s` (monotonic) or longer."""
        return bool(self._answers) and self._unread_since_s <= since_s

    def put(self, answer: Answer) -> None:
        """Queue an answer; a failure ends the call after what was queued before it."""
        if isinstance(answer, Failed):
            self.fail(answer.error)
            return
        if not self._answers:
            self._unread_since_s = time.monotonic()
        self._answers.append(answer)
        self._ready.set()

    def fail(self, error: KatsuraError) -> None:
        """End the call by an error, the first one counts."""
        self._error = self._error or error
        self._ready.set()

    async def take(self) -> list[Answer]:
        """All answers that have come, at least one; raises the error that ended the call."""
        while not self._answers:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            await self._ready.wait()
        answers = list(self._answers)
        self._answers.clear()
        return answers


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pure decode steps of this life: how many, their seconds, sequences, and tokens that these saw, summed up."""

    steps: int = 0
    seconds: float = 0.0
    sequences: int = 0
    context_tokens: int = 0

    def plus(self, timing: Timing) -> Decoded:
        """With one step more."""
        return Decoded(
            self.steps + 1,
            self.seconds + timing.seconds,
            self.sequences + timing.draw_count,
            self.context_tokens + timing.context_count,
        )


@dataclass(slots=True)
class Rates:
    """Smoothed speed of the shard, as its lease tells it."""

    step_ms: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decoded: Decoded = Decoded()

    def note(self, timing: Timing) -> None:
        """Take over one step: pure decodes tell `step_ms` and are counted, the others the rate of prefill."""
        if timing.token_count == timing.draw_count:
            self.step_ms = _smoothed(self.step_ms, timing.seconds * 1000)
            self.decoded = self.decoded.plus(timing)
        elif timing.seconds > 0:
            self.prefill_tokens_per_s = _smoothed(self.prefill_tokens_per_s, timing.token_count / timing.seconds)


@dataclass(slots=True)
class State:
    """What the compute process last said of itself."""

    load: Load
    pool: Pool | None = None
    paused: str = ""
    rates: Rates = field(default_factory=Rates)
    kv_sequence: int = 0


class Shard:
    """One shard, seen from its RPC process."""

    def __init__(self, config: ShardConfig, hello: Hello, tokenizer_digest: str, pipe: AsyncPipe) -> None:
        self.config = config
        self.hello = hello
        self.incarnation = Incarnation(secrets.randbits(INCARNATION_BITS))
        self.start_ms = time.time_ns() // 1_000_000
        self.revision = Revision(
            deployment=config.deployment,
            revision_id=revision_id(hello.weights_digest, config.dtype, config.numerics, hello.layout, WIRE_VERSION),
            weights_digest=hello.weights_digest,
            numerics=config.numerics,
            dtype=config.dtype,
            page_tokens=config.page_tokens,
            context_tokens=hello.context_tokens,
            tokenizer_digest=tokenizer_digest,
        )
        self.state = State(Load(hello.page_count, hello.page_count, 0, 0, 0, 0, 0))
        self.draining = False
        self.on_report: list[Callable[[Report], None]] = []
        """Told every report after its answers were handed out."""
        self._pipe = pipe
        self._calls: dict[int, Call] = {}
        self._numbers = itertools.count(1)
        self._gauges = Gauges()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active_count(self) -> int:
        """Calls in flight."""
        return len(self._calls)

    def owner(self, tenant: Tenant) -> Owner:
        """A tenant, and the namespace that its pages have here."""
        revision = self.revision
        namespace = page_namespace(
            revision.weights_digest, revision.dtype, revision.numerics, revision.page_tokens, tenant.salt
        )
        return Owner(tenant.tenant_id, namespace)

    async def start(self) -> None:
        """Tell the compute process which life of the shard it is."""
        await self._pipe.send(messages.write_command(messages.Start(self.incarnation)))

    async def tell(self, command: Command) -> None:
        """Send a command that nobody waits for."""
        await self._pipe.send(messages.write_command(command))

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A call in flight for the block; leaving it early cancels what the shard does for it."""
        call = Call(next(self._numbers), time.monotonic())
        self._calls[call.number] = call
        self._idle.clear()
        done = False
        try:
            yield call
            done = True
        finally:
            del self._calls[call.number]
            if not self._calls:
                self._idle.set()
            if not done:
                self._cancel_soon(call.number)

    async def ask(self, make: Callable[[int], Command]) -> Answer:
        """Send the command that `make` makes for a call's number, and wait for its one answer."""
        with self.call() as call:
            await self.tell(make(call.number))
            return (await call.take())[0]

    async def listen(self) -> None:
        """Hand reports out until the compute process is gone. Raises PeerDiedError."""
        try:
            async for message in self._pipe:
                self._take(messages.read_report(message))
        except PeerDiedError as error:
            for call in self._calls.values():
                call.fail(UnavailableError("the shard's compute process died; ask the router for another shard"))
            raise UnavailableError(f"the compute process died ({error.message}); this process ends too") from error

    async def watch_readers(self) -> None:
        """Cancel calls whose answers nobody takes."""
        while True:
            await asyncio.sleep(min(1.0, self.config.unread_s / 4))
            late_s = time.monotonic() - self.config.unread_s
            for call in list(self._calls.values()):
                if call.is_unread(late_s):
                    _LOG.warning("a stream is not read; cancelling it", seconds=self.config.unread_s)
                    call.fail(
                        CancelledError(
                            f"the stream was not read for {self.config.unread_s:g} s", reason=Reason.UNREAD_STREAM
                        )
                    )
                    await self.tell(messages.Cancel(call.number))

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, wait for what runs, end the rest EVICTED after `timeout_s`."""
        self.draining = True
        await self.tell(messages.Drain(evict=False))
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            _LOG.warning("ending what still runs; the gateway goes on elsewhere", calls=self.active_count)
        await self.tell(messages.Drain(evict=True))
        await self._idle.wait()

    def drain_soon(self, timeout_s: float) -> None:
        """Begin to drain beside what is going on."""
        if not self.draining:
            self.draining = True
            self._keep(self.drain(timeout_s))

    def _take(self, report: Report) -> None:
        for answer in report.answers:
            call = self._calls.get(answer.call)
            if call is not None:
                call.put(answer)
        state = self.state
        state.load, state.pool, state.paused = report.load or state.load, report.pool or state.pool, report.paused
        if report.batch is not None:
            state.kv_sequence = report.batch[0]
        if report.timing is not None:
            state.rates.note(report.timing)
        self._gauges.note(report)
        for told in self.on_report:
            told(report)

    def _cancel_soon(self, number: int) -> None:
        # The task that served the call may be cancelled itself, so the message needs one of its own.
        self._keep(self.tell(messages.Cancel(number)))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        async def kept() -> None:
            with suppress(PeerDiedError):  # `listen` is told the same
                await work

        task = asyncio.get_running_loop().create_task(kept())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _smoothed(old: float, new: float) -> float:
    return new if old == 0.0 else 0.9 * old + 0.1 * new
