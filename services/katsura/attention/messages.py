"""What the two processes of a shard say to each other over the pipe (`katsura.wire.pipe`): JSON objects.

Commands are rare and are records by their type's name. Reports are made every step, so they are lists that hold
little more than numbers; `Report` is the only place that knows their order.

    {"do": "Generate", "with": "{...}"}
    {"outcomes": [["t", 7, 0, 42, 0, null, null], ...], "load": [...], "events": [1, "..."], "timing": [...]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from katsura.attention.core import intake
from katsura.attention.core.plan import Admitted, Drew, Ended, Failed, Finish, Load, Opened, Outcome, SequenceView
from katsura.attention.core.sequence import Owner, Program
from katsura.domain.errors import BY_CODE, InternalError, KatsuraError, Reason
from katsura.domain.kv_events import KvBatch, pack_events
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.tables import ExpertTable
from katsura.state.records import from_json, to_json


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; `top_logprobs` -1 reports none. The compute process checks the ranges."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    top_logprobs: int = -1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias_ids: tuple[int, ...] = ()
    bias_values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Start:
    """First of all: which life of the shard this is."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Open:
    """CreateSequence."""

    call: int
    request_id: str
    owner: Owner
    program: Program
    sequence_id: str
    tokens: tuple[int, ...]
    keep_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Generate:
    """Generate. `trace` is the W3C traceparent that its steps belong to."""

    request: intake.Generate
    sampling: Sampling
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Fork:
    """ForkSequence."""

    call: int
    request_id: str
    owner: Owner
    sequence_id: str
    new_ids: tuple[str, ...]
    length: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Truncate:
    """TruncateSequence; answered by `Opened`."""

    call: int
    owner: Owner
    sequence_id: str
    length: int


@dataclass(frozen=True, slots=True)
class Delete:
    """DeleteSequence; answered by `Done`."""

    call: int
    owner: Owner
    sequence_id: str


@dataclass(frozen=True, slots=True)
class DropPages:
    """DropPages; answered by `Done` with how many went."""

    call: int
    owner: Owner
    names: tuple[bytes, ...]
    all_pages: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for this call any more."""

    call: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse new work; with `evict` also end what runs, EVICTED."""

    evict: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Report every page."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Turn to this expert table between two steps; None: there is none (yet)."""

    table: ExpertTable | None


Command = (
    Start | Open | Generate | Fork | Truncate | Delete | DropPages | Cancel | Drain | Snapshot | Tables
)  # fmt: skip
_COMMANDS: Mapping[str, type[Command]] = {
    kind.__name__: kind
    for kind in (Start, Open, Generate, Fork, Truncate, Delete, DropPages, Cancel, Drain, Snapshot, Tables)
}


def write_command(command: Command) -> dict[str, Any]:
    """A command as a message."""
    return {"do": type(command).__name__, "with": to_json(command)}


def read_command(message: Mapping[str, Any]) -> Command:
    """The inverse of `write_command`."""
    kind: Any = _COMMANDS[message["do"]]
    command: Command = from_json(kind, message["with"])
    return command


@dataclass(frozen=True, slots=True)
class Hello:
    """First of all from the compute process, when its weights are loaded: what it serves.

    Attributes:
        weights_digest: SHA-256 over the weights' manifest.
        shape: of the model; layout: how its FFN is cut.
        context_tokens: tokens of the longest sequence; page_count: pages of the arena.
    """

    weights_digest: bytes
    shape: ModelShape
    layout: FfnLayout
    context_tokens: int
    page_count: int


def write_hello(hello: Hello) -> dict[str, Any]:
    """A greeting as a message."""
    return {"hello": to_json(hello)}


def read_hello(message: Mapping[str, Any]) -> Hello:
    """The inverse of `write_hello`; raises the error that a compute process ended with instead."""
    if "failed" in message:
        raise _read_error(message["failed"])
    return from_json(Hello, message["hello"])


def write_failure(error: KatsuraError) -> dict[str, Any]:
    """Why there will be no greeting."""
    return {"failed": _write_error(error)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token of an answer, with the log-probabilities that were asked for."""

    call: int
    choice: int
    token: int
    finish: Finish | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has no other answer was carried out."""

    call: int
    count: int = 0


Answer = Opened | Admitted | Drawn | Ended | Failed | Done


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one step: when it began (nanoseconds since the Unix epoch) and how many seconds went where.

    `ffn_seconds` are those of all FFN layers, `transport_seconds` the part of them that no member worked.
    `context_count`: tokens that the sequences that drew have seen, together.
    """

    step: int
    begin_ns: int
    seconds: float
    ffn_seconds: float
    transport_seconds: float
    token_count: int
    row_count: int
    draw_count: int
    context_count: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """The way to the expert members: table in use, what it lacks, and the transport to each member."""

    epoch: int
    missing: str
    transports: Mapping[str, str]
    failovers: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What the compute process says after a step or a command.

    Attributes:
        answers: to calls, in order.
        load: what the shard carries now.
        batch: KV events as (sequence, packed events).
        snapshot: every page as (sequence, names), where asked for.
        timing: of the step, if there was one.
        pool: where it changed.
        paused: what keeps the shard from computing, empty if nothing does.
    """

    answers: tuple[Answer, ...] = ()
    load: Load | None = None
    batch: tuple[int, bytes] | None = None
    snapshot: tuple[int, tuple[bytes, ...]] | None = None
    timing: Timing | None = None
    pool: Pool | None = None
    paused: str = ""


def batch_of(batch: KvBatch | None) -> tuple[int, bytes] | None:
    """KV events as a report carries them."""
    return None if batch is None else (batch.sequence, pack_events(batch.events))


def write_report(report: Report) -> dict[str, Any]:
    """A report as a message."""
    message: dict[str, Any] = {"answers": [_write(answer) for answer in report.answers]}
    if report.load is not None:
        load = report.load
        message["load"] = [getattr(load, name) for name in Load.__slots__]
    if report.batch is not None:
        message["events"] = [report.batch[0], report.batch[1].hex()]
    if report.snapshot is not None:
        message["snapshot"] = [report.snapshot[0], b"".join(report.snapshot[1]).hex()]
    if report.timing is not None:
        message["timing"] = [getattr(report.timing, name) for name in Timing.__slots__]
    if report.pool is not None:
        pool = report.pool
        message["pool"] = [pool.epoch, pool.missing, dict(pool.transports), pool.failovers]
    if report.paused:
        message["paused"] = report.paused
    return message


def read_report(message: Mapping[str, Any]) -> Report:
    """The inverse of `write_report`."""
    events, snapshot = message.get("events"), message.get("snapshot")
    return Report(
        answers=tuple(_read(item) for item in message["answers"]),
        load=Load(*message["load"]) if "load" in message else None,
        batch=None if events is None else (events[0], bytes.fromhex(events[1])),
        snapshot=None if snapshot is None else (snapshot[0], tuple(_names(bytes.fromhex(snapshot[1])))),
        timing=Timing(*message["timing"]) if "timing" in message else None,
        pool=Pool(*message["pool"]) if "pool" in message else None,
        paused=message.get("paused", ""),
    )


def _names(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 16] for at in range(0, len(data), 16))


def answer_of(outcome: Outcome, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()) -> Answer:
    """What a call hears of an outcome of the core."""
    if isinstance(outcome, Drew):
        return Drawn(outcome.call, outcome.choice, outcome.token, outcome.finish, logprob, top)
    return outcome


def _write(answer: Answer) -> list[Any]:
    match answer:
        case Drawn(call, choice, token, finish, logprob, top):
            return ["t", call, choice, token, finish.value if finish else 0, logprob, top or None]
        case Admitted(call, prompt_tokens, cached_tokens):
            return ["a", call, prompt_tokens, cached_tokens]
        case Ended(call, choice, finish):
            return ["e", call, choice, finish.value]
        case Opened(call, sequences):
            return ["o", call, [_write_view(view) for view in sequences]]
        case Done(call, count):
            return ["d", call, count]
        case Failed(call, error):
            return ["f", call, *_write_error(error)]


def _read(item: Sequence[Any]) -> Answer:
    kind, call, *rest = item
    match kind:
        case "t":
            choice, token, finish, logprob, top = rest
            pairs = tuple((int(i), float(p)) for i, p in top or ())
            return Drawn(call, choice, token, Finish(finish) if finish else None, logprob, pairs)
        case "a":
            return Admitted(call, *rest)
        case "e":
            return Ended(call, rest[0], Finish(rest[1]))
        case "o":
            return Opened(call, tuple(_read_view(view) for view in rest[0]))
        case "d":
            return Done(call, rest[0])
        case "f":
            return Failed(call, _read_error(rest))
    raise InternalError(f"the compute process reported {kind!r}, which nobody knows")


def _write_error(error: KatsuraError) -> list[Any]:
    return [error.code, error.reason.value, error.message, error.field, error.metadata, error.retry_after_s]


def _read_error(rest: Sequence[Any]) -> KatsuraError:
    code, reason, message, field, metadata, retry_after_s = rest
    kind = BY_CODE.get(code, InternalError)
    return kind(message, reason=Reason(reason), field=field, metadata=metadata, retry_after_s=retry_after_s)


def _write_view(view: SequenceView) -> list[Any]:
    program = view.program
    return [view.sequence_id, [program.program_id, program.tree_id, program.branch, program.priority],
            view.token_count, view.computed_tokens, view.cached_tokens, view.idle_s]  # fmt: skip


def _read_view(item: Sequence[Any]) -> SequenceView:
    name, program, *rest = item
    return SequenceView(name, Program(*program), *rest)
