"""Translates between `katsura.api.attention.v1` and the shard, and nothing else."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.attention.v1.attention_service_pb2_grpc import AttentionServiceServicer
from katsura.api.common.v1 import common_pb2
from katsura.attention import messages
from katsura.attention.core import intake
from katsura.attention.core.plan import Admitted, Ended, Finish, Opened, SequenceView
from katsura.attention.core.sequence import Program
from katsura.attention.messages import Answer, Done, Drawn, Sampling
from katsura.attention.shard import PROBE_TENANT, Call, Shard
from katsura.domain.errors import InternalError, InvalidArgumentError
from katsura.domain.shape import Numerics
from katsura.rpc.context import current_tenant, require_internal
from katsura.telemetry import names, trace

CHOICES_MAX = 128
CHILDREN_MAX = 128
PROBE_TOKENS = 8
_FINISH = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: common_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: common_pb2.FINISH_REASON_LENGTH,
    Finish.EVICTED: common_pb2.FINISH_REASON_EVICTED,
}
_NUMERICS = {
    Numerics.INVARIANT: common_pb2.NUMERICS_INVARIANT,
    Numerics.FAST: common_pb2.NUMERICS_FAST,
}

Context = grpc.aio.ServicerContext[Any, Any]


class AttentionServicer(AttentionServiceServicer):
    """The service of one shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def CreateSequence(  # noqa: N802
        self, request: pb.CreateSequenceRequest, context: Context
    ) -> pb.CreateSequenceResponse:
        """Open a sequence and prefill it."""
        self._check_revision(request.revision_id)
        owner = self._shard.owner(current_tenant())
        answer = await self._shard.ask(
            lambda call: messages.Open(
                call,
                request.request_id,
                owner,
                _program(request.program),
                _new_id(),
                tuple(request.token_ids),
                _not_negative(request.keep_ms, "keep_ms") / 1000,
                self._deadline_s(context),
            )
        )
        return pb.CreateSequenceResponse(sequence=_sequences(answer)[0])

    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Append, draw, stream."""
        self._check_revision(request.revision_id)
        choices = request.choice_count or 1
        if not 1 <= choices <= CHOICES_MAX:
            raise InvalidArgumentError(f"choice_count: 1 to {CHOICES_MAX}", field="choice_count")
        if request.stop.max_new_tokens < 1:
            raise InvalidArgumentError("stop.max_new_tokens: at least 1", field="stop.max_new_tokens")
        owner = self._shard.owner(current_tenant())
        sampling = _sampling(request.sampling)
        with self._shard.call() as call:
            generate = intake.Generate(
                call=call.number,
                owner=owner,
                program=_program(request.program),
                sequence_id=request.sequence_id,
                new_ids=tuple(_new_id() for _ in range(choices)),
                tokens=tuple(request.token_ids),
                new_tokens_max=request.stop.max_new_tokens,
                stop_ids=tuple(request.stop.stop_token_ids),
                deadline_s=self._deadline_s(context),
                resumed=tuple(intake.Resumed(tuple(one.token_ids), one.finished) for one in request.resumed),
            )
            await self._shard.tell(messages.Generate(generate, sampling, trace.traceparent()))
            live = choices - sum(one.finished for one in request.resumed)
            async for response in _stream(call, live):
                yield response

    async def ForkSequence(  # noqa: N802
        self, request: pb.ForkSequenceRequest, context: Context
    ) -> pb.ForkSequenceResponse:
        """Make children that share pages."""
        children = request.child_count or 1
        if not 1 <= children <= CHILDREN_MAX:
            raise InvalidArgumentError(f"child_count: 1 to {CHILDREN_MAX}", field="child_count")
        owner = self._shard.owner(current_tenant())
        answer = await self._shard.ask(
            lambda call: messages.Fork(
                call,
                request.request_id,
                owner,
                request.sequence_id,
                tuple(_new_id() for _ in range(children)),
                _not_negative(request.token_count, "token_count"),
                self._deadline_s(context),
            )
        )
        return pb.ForkSequenceResponse(sequences=_sequences(answer))

    async def TruncateSequence(  # noqa: N802
        self, request: pb.TruncateSequenceRequest, context: Context
    ) -> pb.TruncateSequenceResponse:
        """Cut a sequence back."""
        owner = self._shard.owner(current_tenant())
        answer = await self._shard.ask(
            lambda call: messages.Truncate(call, owner, request.sequence_id, request.token_count)
        )
        return pb.TruncateSequenceResponse(sequence=_sequences(answer)[0])

    async def DeleteSequence(  # noqa: N802
        self, request: pb.DeleteSequenceRequest, context: Context
    ) -> pb.DeleteSequenceResponse:
        """Let a sequence go."""
        owner = self._shard.owner(current_tenant())
        await self._shard.ask(lambda call: messages.Delete(call, owner, request.sequence_id))
        return pb.DeleteSequenceResponse()

    async def DropPages(  # noqa: N802
        self, request: pb.DropPagesRequest, context: Context
    ) -> pb.DropPagesResponse:
        """Drop cached pages of the calling tenant."""
        owner = self._shard.owner(current_tenant())
        answer = await self._shard.ask(
            lambda call: messages.DropPages(call, owner, tuple(request.page_hashes), request.all_pages)
        )
        return pb.DropPagesResponse(dropped_count=answer.count if isinstance(answer, Done) else 0)

    async def GetShard(  # noqa: N802
        self, request: pb.GetShardRequest, context: Context
    ) -> pb.GetShardResponse:
        """What this shard is, holds and carries."""
        require_internal()
        return pb.GetShardResponse(shard=self._describe())

    async def Probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeResponse:  # noqa: N802
        """Draw tokens for a fixed prompt."""
        require_internal()
        probed = await self.probe(_not_negative(request.token_count, "token_count") or 1, self._deadline_s(context))
        return pb.ProbeResponse(token_ids=probed.tokens, first_token_ms=probed.first_token_ms, shard=self._describe())

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        """Begin to drain; the answer says how much still runs."""
        require_internal()
        self._shard.drain_soon(_not_negative(request.timeout_ms, "timeout_ms") / 1000)
        return pb.DrainResponse(drain=self._drain_state())

    async def probe(self, count: int, deadline_s: float) -> Probed:
        """Draw `count` tokens, greedy, for a prompt that every model has."""
        shard = self._shard
        prompt = tuple(1 + i % (shard.hello.shape.vocab_size - 1) for i in range(PROBE_TOKENS))
        with shard.call() as call:
            generate = intake.Generate(
                call.number, shard.owner(PROBE_TENANT), Program(), "", (_new_id(),), prompt, count, (), deadline_s
            )
            await shard.tell(messages.Generate(generate, Sampling()))
            tokens: list[int] = []
            first_token_ms = 0.0
            async for response in _stream(call, 1):
                first_token_ms = first_token_ms or response.first_token_ms
                tokens += [token.token_id for token in response.tokens]
            return Probed(tokens, first_token_ms)

    def _describe(self) -> pb.Shard:
        shard, state, revision = self._shard, self._shard.state, self._shard.revision
        return pb.Shard(
            shard_id=shard.config.serve.instance_id,
            incarnation=shard.incarnation,
            revision=common_pb2.Revision(
                deployment=revision.deployment,
                revision_id=revision.revision_id,
                weights_digest=revision.weights_digest,
                numerics=_NUMERICS[revision.numerics],
                dtype=revision.dtype.value,
                page_tokens=revision.page_tokens,
                context_tokens=revision.context_tokens,
                tokenizer_digest=revision.tokenizer_digest,
            ),
            page_count=state.load.page_count,
            free_page_count=state.load.free_page_count,
            running_count=state.load.running_count,
            waiting_count=state.load.waiting_count,
            waiting_tokens=state.load.waiting_tokens,
            step_ms=state.rates.step_ms,
            prefill_tokens_per_s=state.rates.prefill_tokens_per_s,
            epoch=state.pool.epoch if state.pool else 0,
            transports=dict(state.pool.transports) if state.pool else {},
            kv_event_sequence=state.kv_sequence,
            drain=self._drain_state(),
            decoded=pb.DecodeCount(**asdict(state.rates.decoded)),
        )

    def _drain_state(self) -> common_pb2.DrainState:
        return common_pb2.DrainState(draining=self._shard.draining, active_count=self._shard.active_count)

    def _check_revision(self, revision_id: str) -> None:
        ours = self._shard.revision.revision_id
        if revision_id != ours:
            raise InvalidArgumentError(
                f"revision_id: this shard serves {ours}, not {revision_id or 'nothing'}; ids of another revision mean "
                "something else here",
                field="revision_id",
            )

    def _deadline_s(self, context: Context) -> float:
        left_s, most_s = context.time_remaining(), self._shard.config.call_timeout_s
        return time.monotonic() + (most_s if left_s is None else min(left_s, most_s))


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe drew, and milliseconds to its first token."""

    tokens: list[int]
    first_token_ms: float


async def _stream(call: Call, live: int) -> AsyncIterator[pb.GenerateResponse]:
    """Answers to a generation as responses: tokens of one choice that came together travel together."""
    usage = common_pb2.Usage()
    begun_ns, first_ns = time.time_ns(), 0
    told_usage = False
    while live:
        for choice, tokens, finish in _grouped(await call.take(), usage):
            response = pb.GenerateResponse(choice_index=choice, tokens=tokens, finish_reason=_FINISH[finish])
            if tokens and not first_ns:
                first_ns = time.time_ns()
                response.first_token_ms = (time.monotonic() - call.begun_s) * 1000
                trace.record(names.SPAN_PREFILL, begun_ns, first_ns, _counts(usage), parent=trace.traceparent())
            live -= finish is not None
            if not told_usage or not live:
                told_usage = True
                response.usage.CopyFrom(usage)
            yield response
    if first_ns:
        drawn = {names.TOKEN_COUNT: usage.completion_tokens}
        trace.record(names.SPAN_GENERATE, first_ns, time.time_ns(), drawn, parent=trace.traceparent())


def _counts(usage: common_pb2.Usage) -> dict[str, int]:
    return {names.TOKEN_COUNT: usage.prompt_tokens, names.CACHED_TOKENS: usage.cached_tokens}


def _grouped(
    answers: Sequence[Answer], usage: common_pb2.Usage
) -> list[tuple[int, list[common_pb2.Token], Finish | None]]:
    """(choice, its tokens, its end) in the order of first appearance; counts tokens in `usage`."""
    tokens: dict[int, list[common_pb2.Token]] = {}
    ends: dict[int, Finish] = {}
    for answer in answers:
        match answer:
            case Admitted(_, prompt_tokens, cached_tokens):
                if not usage.prompt_tokens:
                    usage.prompt_tokens, usage.cached_tokens = prompt_tokens, cached_tokens
            case Drawn(_, choice, _, finish):
                tokens.setdefault(choice, []).append(_token(answer))
                usage.completion_tokens += 1
                if finish is not None:
                    ends[choice] = finish
            case Ended(_, choice, finish):
                tokens.setdefault(choice, [])
                ends[choice] = finish
            case _:
                raise InternalError(f"a generation was answered by {type(answer).__name__}")
    return [(choice, drawn, ends.get(choice)) for choice, drawn in tokens.items()]


def _token(drawn: Drawn) -> common_pb2.Token:
    alternatives = [common_pb2.TokenAlternative(token_id=i, logprob=p) for i, p in drawn.top]
    return common_pb2.Token(token_id=drawn.token, logprob=drawn.logprob, alternatives=alternatives)


def _sequences(answer: Answer) -> list[pb.Sequence]:
    if not isinstance(answer, Opened):
        raise InternalError(f"a sequence was answered by {type(answer).__name__}")
    return [_sequence(view) for view in answer.sequences]


def _sequence(view: SequenceView) -> pb.Sequence:
    program = view.program
    sequence = pb.Sequence(
        sequence_id=view.sequence_id,
        program=pb.ProgramRef(
            program_id=program.program_id, tree_id=program.tree_id, branch=program.branch, priority=program.priority
        ),
        token_count=view.token_count,
        computed_tokens=view.computed_tokens,
        cached_tokens=view.cached_tokens,
    )
    sequence.expire_time.FromMilliseconds(int((time.time() + view.idle_s) * 1000))
    return sequence


def _program(program: pb.ProgramRef) -> Program:
    return Program(program.program_id, program.tree_id, program.branch, program.priority)


def _sampling(params: common_pb2.SamplingParams) -> Sampling:
    bias = sorted(params.logit_bias.items())
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p or 1.0,
        top_k=params.top_k,
        seed=params.seed,
        top_logprobs=params.top_logprobs,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        bias_ids=tuple(i for i, _ in bias),
        bias_values=tuple(value for _, value in bias),
    )


def _not_negative(value: int, field: str) -> int:
    if value < 0:
        raise InvalidArgumentError(f"{field}: must not be negative", field=field)
    return value


def _new_id() -> str:
    return secrets.token_hex(12)
