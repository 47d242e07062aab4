"""The life of one request, from a checked body to answers that are kept.

    model, text -> [turn grown into the tree] -> prompt ids -> page hashes -> shard -> tokens ... -> [answer grown]

Everything up to the prompt happens before the first byte of the reply, so its errors are HTTP statuses. `Turn.events`
draws. An answer that is kept is in the tree, with its ids as drawn, before `Answered` is given out: a client that saw
the end of an answer will find it. A client that goes away cancels the drawing: its turn stays, the partial answer does
not, and asking again goes on from the turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from katsura.api.common.v1 import common_pb2 as common
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.domain.errors import InternalError, NotFoundError, Reason, UnavailableError
from katsura.domain.pages import page_hashes, page_namespace
from katsura.domain.shape import DType, Numerics
from katsura.gateway.core.answer_ids import answer_ids
from katsura.gateway.core.budget import Limit, answer_limit, answer_reserve
from katsura.gateway.core.chat_reply import TokenUsage
from katsura.gateway.core.choice import Choice, Piece
from katsura.gateway.core.logprobs import entries
from katsura.gateway.core.prompt import Part, Prompt
from katsura.gateway.core.sampling_request import Sampling
from katsura.gateway.deadline import Deadline
from katsura.gateway.deps import Deps
from katsura.gateway.generation import Generation, Order, Shown
from katsura.gateway.metrics import Measured
from katsura.gateway.texts import ModelText
from katsura.gateway.trees import Answer, Kept, Place, Trees
from katsura.rpc.context import CallContext
from katsura.telemetry import names, trace
from katsura.text.decoding import IncrementalDecoder
from katsura.text.stops import StopStrings

_NUMERICS = {common.NUMERICS_INVARIANT: Numerics.INVARIANT, common.NUMERICS_FAST: Numerics.FAST}
_SEED_BITS = 63
_MODEL_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a request is, when it ends, and the name that makes its writes repeatable.

    `write_id` is drawn per request and is not the client's `x-request-id`: that one is for logs and need not be unique.
    """

    call: CallContext
    deadline: Deadline
    write_id: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that was chosen: its deployment, its revision and its text."""

    name: str
    revision: common.Revision
    text: ModelText


@dataclass(frozen=True, slots=True)
class Wish:
    """What answers are wanted."""

    sampling: Sampling
    limit: Limit
    stop: tuple[str, ...] = ()
    choice_count: int = 1


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer has ended, and is kept at `place` where it is to be kept."""

    index: int
    finish_reason: str
    place: Place | None


async def choose_model(deps: Deps, caller: Caller, name: str, session_id: str) -> ServedModel:
    """The model that `name` means; one whose shards are all away is waited for, as long as a lost shard is.

    Raises:
        NotFoundError: MODEL_NOT_FOUND, with the field `model`.
        UnavailableError: NO_SHARD, none came.
    """
    give_up_s = deps.clock.monotonic_s() + deps.config.shard_wait_s
    while True:
        router = deps.router.acting_for(caller.call, caller.deadline.left_s())
        try:
            chosen = (await router.choose_model(name, program_id=session_id)).model
            break
        except NotFoundError as error:
            error.field = "model"
            raise
        except UnavailableError as error:
            if error.reason is not Reason.NO_SHARD or deps.clock.monotonic_s() > give_up_s:
                raise
        await asyncio.sleep(min(_MODEL_PAUSE_S, caller.deadline.left_s()))
    text = await deps.texts.of(chosen.model_path, chosen.revision.tokenizer_digest)
    return ServedModel(chosen.name, chosen.revision, text)


def trees_of(deps: Deps, caller: Caller) -> Trees:
    """The caller's trees."""
    memory = deps.memory.acting_for(caller.call, min(caller.deadline.left_s(), 30.0))
    return Trees(memory, caller.write_id)


async def plain_prompt(model: ServedModel, parts: Sequence[Part]) -> Prompt:
    """A prompt that no tree takes part in."""
    with trace.span(names.SPAN_ASSEMBLE):
        return await model.text.prompt(parts)


async def tree_prompt(
    model: ServedModel, trees: Trees, place: Place, wish: Wish, before: Sequence[Part] = ()
) -> Prompt:
    """The prompt of a place in a tree, `before` leading it."""
    context_tokens = model.revision.context_tokens
    with trace.span(names.SPAN_ASSEMBLE, {names.SESSION: place.tree_id}):
        return await trees.prompt(
            place,
            model.text,
            model.revision.tokenizer_digest,
            before,
            budget_tokens=context_tokens,
            reserve_tokens=answer_reserve(context_tokens, wish.limit),
        )


class Turn:
    """Draws the answers to one prompt and keeps them at `place`, or nowhere where that is None."""

    def __init__(
        self,
        deps: Deps,
        caller: Caller,
        model: ServedModel,
        wish: Wish,
        prompt: Prompt,
        place: Place | None,
        started_s: float,
    ) -> None:
        self.model = model
        self.choices = tuple(
            Choice(IncrementalDecoder(model.text.tokenizer), StopStrings(wish.stop), model.text.stop_token_ids)
            for _ in range(wish.choice_count)
        )
        self._deps = deps
        self._caller = caller
        self._wish = wish
        self._prompt = prompt
        self._place = place
        self._started_s = started_s
        self._generation = Generation(
            self._order(),
            self.choices,
            deps.router,
            deps.shards,
            caller.call,
            deps.clock,
            caller.deadline,
            deps.config.shard_wait_s,
        )

    @property
    def usage(self) -> TokenUsage:
        """Counts so far."""
        drawn = self._generation
        return TokenUsage(len(self._prompt.token_ids), drawn.cached_tokens, drawn.completion_tokens)

    @property
    def logprobs_wanted(self) -> bool:
        """Whether the client asked for log-probabilities."""
        return self._wish.sampling.top_logprobs >= 0

    def logprobs(self, piece: Piece) -> list[dict[str, object]] | None:
        """Log-probabilities of a piece in OpenAI's shape, None where they were not asked for."""
        return entries(piece.tokens, self.model.text.tokenizer.token_bytes) if self.logprobs_wanted else None

    async def events(self) -> AsyncGenerator[Shown | Answered, None]:
        """Text as it becomes certain, and the end of each answer once it is kept.

        Raises:
            KatsuraError: the drawing failed, or the answer could not be kept.
        """
        clock, drawn = self._deps.clock, 0
        measured = Measured(self.model.name, self._started_s)
        try:
            async with aclosing(self._generation.run()) as events:
                async for event in events:
                    if isinstance(event, Shown):
                        count, drawn = self._generation.completion_tokens - drawn, self._generation.completion_tokens
                        if count:
                            measured.tokens(count, clock.monotonic_s())
                        if event.piece.text or event.piece.tokens:
                            yield event
                        continue
                    answered = await self._answered(event.index)
                    measured.answer(answered.finish_reason)
                    yield answered
        finally:
            usage = self.usage
            measured.end(usage.prompt_tokens, usage.cached_tokens, clock.monotonic_s())

    async def _answered(self, index: int) -> Answered:
        choice = self.choices[index]
        if choice.finish is None:
            raise InternalError("an answer was reported as ended before it ended")
        place = None
        if self._place is not None:
            kept = await self._keep(self._place, index, choice)
            place = kept.place
            if kept.compress_due:
                self._deps.background.start("compression", self._compress(kept.place))
        return Answered(index, choice.finish.value, place)

    async def _keep(self, place: Place, index: int, choice: Choice) -> Kept:
        text, usage = self.model.text, self.usage
        token_ids = answer_ids(
            rendered=text.answer_piece(choice.text),
            opening=self._prompt.opening,
            content=choice.text,
            drawn=choice.token_ids,
            decode=text.tokenizer.decode,
            encode=text.tokenizer.encode,
            stop_token_ids=text.stop_token_ids,
        )
        answer = Answer(
            text=choice.text,
            token_ids=None if token_ids is None else tuple(token_ids),
            cost=tree_pb.Cost(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=len(choice.token_ids),
            ),
            model=self.model.name,
        )
        trees = trees_of(self._deps, self._caller)
        return await trees.keep(place, index, answer, self.model.revision.tokenizer_digest)

    async def _compress(self, place: Place) -> None:
        """Close the raw segment; a branch that went on meanwhile will say again that it is due."""
        memory = self._deps.memory.acting_for(self._caller.call)
        await memory.compress(place.tree_id, branch=place.branch, expected_head=place.head)

    def _order(self) -> Order:
        revision, call, place = self.model.revision, self._caller.call, self._place
        tenant = call.tenant
        if tenant is None:
            raise InternalError("a turn without a tenant")
        namespace = page_namespace(
            revision.weights_digest,
            DType(revision.dtype),
            _NUMERICS[revision.numerics],
            revision.page_tokens,
            tenant.salt,
        )
        sampling, token_ids = self._wish.sampling, self._prompt.token_ids
        return Order(
            request_id=self._caller.write_id,
            deployment=self.model.name,
            revision_id=revision.revision_id,
            program_id=call.session_id,
            tree_id=place.tree_id if place else "",
            branch=place.branch if place else "",
            branch_key=f"{place.tree_id}/{place.branch}" if place else "",
            token_ids=token_ids,
            page_hashes=tuple(page_hashes(namespace, token_ids, revision.page_tokens)),
            sampling=sampling,
            seed=self._deps.random_bits(_SEED_BITS) if sampling.seed is None else sampling.seed,
            max_new_tokens=answer_limit(revision.context_tokens, len(token_ids), self._wish.limit),
            stop_token_ids=self.model.text.stop_token_ids,
        )
