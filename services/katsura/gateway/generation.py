"""One generation, whatever becomes of the shards that draw it.

The gateway holds the prompt's ids, the ids drawn so far and the seed. That is all a shard needs to go on where another
one was lost: draws are a pure function of (seed, choice, position), so the stream continues with the same tokens.

    choose a shard -> stream its tokens -> all answers ended: done
         ^                  | lost, draining or evicted: exclude it
         +------------------+ nobody else: forget the exclusions and wait for one, `shard_wait_s` without progress
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.common.v1 import common_pb2 as common
from katsura.api.router.v1 import router_service_pb2 as router_pb
from katsura.domain.clock import Clock
from katsura.domain.errors import InvalidArgumentError, KatsuraError, Reason, ResourceExhaustedError, UnavailableError
from katsura.gateway.core.choice import Choice, Drawn, Finish, Piece
from katsura.gateway.core.sampling_request import Sampling
from katsura.gateway.deadline import Deadline
from katsura.rpc.context import CallContext
from katsura.sdk import RouterClient, ShardPool
from katsura.telemetry import log

_LOG = log.get(__name__)
_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0
_FINISHES = {common.FINISH_REASON_STOP: Finish.STOP, common.FINISH_REASON_LENGTH: Finish.LENGTH}


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of a shard.

    Attributes:
        program_id: agent session, empty for none; branch_key: where in its tree, so that cold siblings meet.
        page_hashes: names of the prompt's full pages under the tenant's salt.
        seed: where the draws come from; `sampling.seed` if the client gave one.
    """

    request_id: str
    deployment: str
    revision_id: str
    program_id: str
    tree_id: str
    branch: str
    branch_key: str
    token_ids: tuple[int, ...]
    page_hashes: tuple[bytes, ...]
    sampling: Sampling
    seed: int
    max_new_tokens: int
    stop_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Shown:
    """Text of a choice that may be sent."""

    index: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice has ended; its state says how."""

    index: int


class Generation:
    """Draws the answers of one order.

    Attributes:
        choices: the answers, as far as they are.
        cached_tokens: prompt tokens that the first shard had; shard_ids: shards that drew, in order.
    """

    def __init__(
        self,
        order: Order,
        choices: Sequence[Choice],
        router: RouterClient,
        shards: ShardPool,
        call: CallContext,
        clock: Clock,
        deadline: Deadline,
        shard_wait_s: float,
    ) -> None:
        self.choices = tuple(choices)
        self.cached_tokens = 0
        self.shard_ids: list[str] = []
        self._order = order
        self._router = router
        self._shards = shards
        self._call = call
        self._clock = clock
        self._deadline = deadline
        self._shard_wait_s = shard_wait_s
        self._excluded: set[str] = set()
        self._progress_s = clock.monotonic_s()
        self._failure: KatsuraError | None = None

    @property
    def completion_tokens(self) -> int:
        """Tokens drawn so far, all choices together."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def _open(self) -> bool:
        return any(choice.finish is None for choice in self.choices)

    async def run(self) -> AsyncGenerator[Shown | Ended, None]:
        """Draw until every answer has ended; leaving the iterator cancels the drawing.

        Raises:
            KatsuraError: no shard could go on in time, or the request is at fault.
        """
        pause = _PAUSE_FIRST_S
        while self._open:
            drawn = self.completion_tokens
            decision = await self._choose()
            if decision is not None:
                self.shard_ids.append(decision.shard.shard_id)
                async with aclosing(self._draw(decision)) as events:
                    async for event in events:
                        yield event
            if self.completion_tokens > drawn:
                pause = _PAUSE_FIRST_S
            if self._open and decision is None:
                await asyncio.sleep(min(pause, self._deadline.left_s()))
                pause = min(pause * 2, _PAUSE_MAX_S)

    async def _choose(self) -> router_pb.ChooseShardResponse | None:
        """A shard, or None if there is none at the moment and waiting longer is allowed."""
        order = self._order
        try:
            return await self._router.acting_for(self._call, self._deadline.left_s()).choose_shard(
                revision_id=order.revision_id,
                deployment=order.deployment,
                program_id=order.program_id,
                branch_key=order.branch_key,
                page_hashes=order.page_hashes,
                prompt_tokens=len(order.token_ids),
                max_new_tokens=order.max_new_tokens,
                excluded_shard_ids=sorted(self._excluded),
            )
        except (UnavailableError, ResourceExhaustedError) as error:
            # A sequence never changes revision: where a rollout took its shards, that is what the client learns.
            failure = error if error.reason is Reason.EVICTED_ROLLOUT else self._failure or error
            if isinstance(failure, ResourceExhaustedError) and not self.completion_tokens:
                raise failure from None  # every shard is full: the client should know now, not after a wait
            if self._clock.monotonic_s() - self._progress_s > self._shard_wait_s:
                raise failure from None
            if not self._excluded:
                _LOG.info("waiting for a shard", reason=error.reason.value)
            self._excluded.clear()  # it may be back, in another life
            return None

    async def _draw(self, decision: router_pb.ChooseShardResponse) -> AsyncGenerator[Shown | Ended, None]:
        """Stream one shard's tokens; returns when all ended or the shard is of no more use."""
        shard = decision.shard
        try:
            client = self._shards.at(shard.address).acting_for(self._call)
            request, left_s = self._request(), self._deadline.left_s()
            async with aclosing(client.generate(request, timeout_s=left_s)) as messages:
                async for message in messages:
                    for event in self._take(message):
                        yield event
                    if not self._open:
                        break
            if self._open:
                raise UnavailableError(f"shard {shard.shard_id} let go of the answer", reason=Reason.DRAINING)
        except (UnavailableError, ResourceExhaustedError) as error:
            self._failure = error
            self._excluded.add(shard.shard_id)
            _LOG.warning(
                "a shard was lost; going on elsewhere",
                shard=shard.shard_id,
                reason=error.reason.value,
                drawn=self.completion_tokens,
            )
            await self._report(decision, failed=True)
            return
        except InvalidArgumentError as error:
            error.field = (error.field or "").removeprefix("sampling.") or None  # the client's body has no such level
            raise
        await self._report(decision, failed=False)

    def _take(self, message: pb.GenerateResponse) -> list[Shown | Ended]:
        """What one message of a shard means to the client."""
        if message.HasField("usage") and len(self.shard_ids) == 1:
            self.cached_tokens = message.usage.cached_tokens
        choice = self.choices[message.choice_index]
        before = choice.finish
        if before is not None:
            return []
        events: list[Shown | Ended] = []
        if message.tokens:
            self._progress_s, self._failure = self._clock.monotonic_s(), None
            events.append(Shown(message.choice_index, choice.push([_drawn(token) for token in message.tokens])))
        finish = _FINISHES.get(message.finish_reason)
        if finish is not None:
            events.append(Shown(message.choice_index, choice.end(finish)))
        if finish is not None or choice.finish is not None:
            events.append(Ended(message.choice_index))
        return events

    def _request(self) -> pb.GenerateRequest:
        order, sampling = self._order, self._order.sampling
        resumed = [
            pb.ResumedChoice(token_ids=choice.token_ids, finished=choice.finish is not None) for choice in self.choices
        ]
        return pb.GenerateRequest(
            request_id=order.request_id,
            revision_id=order.revision_id,
            program=pb.ProgramRef(
                program_id=order.program_id or order.request_id, tree_id=order.tree_id, branch=order.branch
            ),
            token_ids=order.token_ids,
            choice_count=len(self.choices),
            sampling=common.SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=order.seed,
                top_logprobs=sampling.top_logprobs,
                presence_penalty=sampling.presence_penalty,
                frequency_penalty=sampling.frequency_penalty,
                logit_bias=dict(sampling.logit_bias),
            ),
            stop=common.StopConditions(
                max_new_tokens=order.max_new_tokens, stop_token_ids=sorted(order.stop_token_ids)
            ),
            resumed=resumed if self.completion_tokens else [],
        )

    async def _report(self, decision: router_pb.ChooseShardResponse, *, failed: bool) -> None:
        usage = common.Usage(
            prompt_tokens=len(self._order.token_ids),
            cached_tokens=self.cached_tokens,
            completion_tokens=self.completion_tokens,
        )
        try:
            await self._router.acting_for(self._call, self._deadline.left_s()).report_outcome(
                decision.decision_id,
                decision.shard.shard_id,
                program_id=self._order.program_id,
                usage=usage,
                failed=failed,
            )
        except KatsuraError as error:
            _LOG.warning("the router was not told what became of a decision", reason=error.reason.value)


def _drawn(token: common.Token) -> Drawn:
    alternatives = tuple((other.token_id, other.logprob) for other in token.alternatives)
    return Drawn(token.token_id, token.logprob if token.HasField("logprob") else None, alternatives)
