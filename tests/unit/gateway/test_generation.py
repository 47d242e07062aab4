"""A generation over shards that die at every point: the stream must be the one that no death interrupted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace

import pytest

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.common.v1 import common_pb2 as common
from katsura.api.router.v1 import router_service_pb2 as router_pb
from katsura.domain.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    KatsuraError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from katsura.gateway.core.choice import Choice, Finish
from katsura.gateway.core.sampling_request import Sampling
from katsura.gateway.deadline import Deadline
from katsura.gateway.generation import Ended, Generation, Order, Shown
from katsura.rpc.context import CallContext
from katsura.text.stops import StopStrings

EOS = 0
CALL = CallContext(None)


class Letters:
    """Token 1 is `a`, 2 is `b`, ..."""

    def push(self, ids: Iterable[int]) -> str:
        return "".join(chr(96 + index) for index in ids)

    def finish(self) -> str:
        return ""


class Clock:
    """Moves on by a little whenever it is read."""

    def __init__(self, step_s: float = 0.001) -> None:
        self.now, self.step = 0.0, step_s

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        self.now += self.step
        return self.now


class Shards:
    """Shards a, b, ...: each draws the script's tokens one by one and dies where it is told to."""

    def __init__(self, script: Sequence[int], deaths: dict[str, tuple[int, KatsuraError | None]]) -> None:
        self.script, self.deaths = list(script), deaths
        self.requests: list[tuple[str, pb.GenerateRequest]] = []
        self.open_streams = 0

    def at(self, address: str) -> Shards:
        self.address = address
        return self

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> Shards:
        return self

    async def generate(
        self, request: pb.GenerateRequest, *, timeout_s: float
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        name = self.address
        self.requests.append((name, request))
        after, death = self.deaths.pop(name, (10**9, None))
        self.open_streams += 1
        try:
            drawn = [list(choice.token_ids) for choice in request.resumed] or [[] for _ in range(request.choice_count)]
            done = [choice.finished for choice in request.resumed] or [False] * request.choice_count
            first = True
            for count in range(10**6):
                for index in range(request.choice_count):
                    if done[index]:
                        continue
                    if after == count:
                        if death is None:
                            yield pb.GenerateResponse(choice_index=index, finish_reason=common.FINISH_REASON_EVICTED)
                            return
                        raise death
                    token = self.script[len(drawn[index])]
                    drawn[index].append(token)
                    limit = len(drawn[index]) == request.stop.max_new_tokens
                    done[index] = token == EOS or limit
                    finish = common.FINISH_REASON_STOP if token == EOS else common.FINISH_REASON_LENGTH
                    response = pb.GenerateResponse(choice_index=index, tokens=[common.Token(token_id=token)])
                    if done[index]:
                        response.finish_reason = finish
                    if first:
                        response.usage.CopyFrom(common.Usage(prompt_tokens=2, cached_tokens=1))
                        first = False
                    yield response
                if all(done):
                    return
        finally:
            self.open_streams -= 1


class Router:
    """Chooses the first shard that is not excluded; says NO_SHARD where there is none."""

    def __init__(self, *names: str, failure: KatsuraError | None = None) -> None:
        self.names, self.failure = names, failure
        self.excluded: list[tuple[str, ...]] = []
        self.outcomes: list[tuple[str, bool]] = []

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> Router:
        return self

    async def choose_shard(
        self, *, excluded_shard_ids: Sequence[str], **asked: object
    ) -> router_pb.ChooseShardResponse:
        self.excluded.append(tuple(excluded_shard_ids))
        for name in self.names:
            if name not in excluded_shard_ids:
                shard = router_pb.ShardEndpoint(shard_id=name, address=name)
                return router_pb.ChooseShardResponse(decision_id=f"d-{name}", shard=shard)
        raise self.failure or UnavailableError("no shard", reason=Reason.NO_SHARD)

    async def report_outcome(self, decision_id: str, shard_id: str, **outcome: object) -> None:
        self.outcomes.append((shard_id, bool(outcome["failed"])))


ORDER = Order(
    request_id="r1",
    deployment="demo",
    revision_id="rev",
    program_id="",
    tree_id="",
    branch="",
    branch_key="",
    token_ids=(5, 6),
    page_hashes=(),
    sampling=Sampling(),
    seed=7,
    max_new_tokens=100,
    stop_token_ids=frozenset({EOS}),
)
SCRIPT = [1, 2, 3, 4, EOS]


def generation(
    shards: Shards,
    router: Router,
    *,
    choices: int = 1,
    stops: Sequence[str] = (),
    order: Order = ORDER,
    clock: Clock | None = None,
    wait_s: float = 60.0,
    timeout_s: float = 600.0,
) -> Generation:
    clock = clock or Clock()
    made = [Choice(Letters(), StopStrings(stops), frozenset({EOS})) for _ in range(choices)]
    deadline = Deadline(clock, timeout_s)
    return Generation(order, made, router, shards, CALL, clock, deadline, wait_s)  # type: ignore[arg-type]


async def drawn(run: Generation) -> tuple[str, list[int]]:
    text, ended = "", []
    async for event in run.run():
        if isinstance(event, Shown):
            text += event.piece.text
        elif isinstance(event, Ended):
            ended.append(event.index)
    return text, ended


async def test_an_undisturbed_stream_ends_once_and_reports_its_outcome() -> None:
    shards, router = Shards(SCRIPT, {}), Router("a")
    run = generation(shards, router)
    assert await drawn(run) == ("abcd", [0])
    assert (run.cached_tokens, run.completion_tokens) == (1, 5)
    assert router.outcomes == [("a", False)]
    ((_, request),) = shards.requests
    assert list(request.token_ids) == [5, 6]
    assert not request.resumed
    assert request.sampling.seed == 7


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("evicted", [False, True])
async def test_a_shard_lost_at_any_token_changes_nothing(at: int, evicted: bool) -> None:
    death = None if evicted else UnavailableError("gone")
    shards, router = Shards(SCRIPT, {"a": (at, death)}), Router("a", "b")
    run = generation(shards, router)
    assert await drawn(run) == ("abcd", [0])
    assert router.outcomes == [("a", True), ("b", False)]
    assert router.excluded == [(), ("a",)]
    resumed = shards.requests[1][1].resumed
    assert [list(choice.token_ids) for choice in resumed] == ([SCRIPT[:at]] if at else [])
    assert run.cached_tokens == (1 if at else 0)


async def test_once_a_stop_string_ended_all_answers_a_later_death_is_not_even_seen() -> None:
    shards, router = Shards([1, 2, 3, 4, 5, 6, EOS], {"a": (3, UnavailableError("gone"))}), Router("a", "b")
    run = generation(shards, router, choices=2, stops=["bc"])
    assert await drawn(run) == ("aa", [0, 1])
    assert len(shards.requests) == 1, "a stop string ends both before the shard dies"
    assert [choice.text for choice in run.choices] == ["a", "a"]


async def test_one_answer_ended_and_the_other_goes_on_elsewhere() -> None:
    shards, router = Shards(SCRIPT, {"a": (2, UnavailableError("gone"))}), Router("a", "b")
    run = generation(shards, router, choices=2)
    run.choices[0].end(Finish.STOP)
    assert await drawn(run) == ("abcd", [1])
    assert [choice.finished for choice in shards.requests[1][1].resumed] == [True, False]


async def test_the_only_shard_may_come_back_in_another_life() -> None:
    shards, router = Shards(SCRIPT, {"a": (2, UnavailableError("gone"))}), Router("a")
    assert await drawn(generation(shards, router)) == ("abcd", [0])
    assert router.excluded == [(), ("a",), ()]
    assert [name for name, _ in shards.requests] == ["a", "a"]


async def test_without_progress_it_gives_up_with_the_shards_own_error() -> None:
    router = Router()
    with pytest.raises(UnavailableError) as failure:
        await drawn(generation(Shards(SCRIPT, {}), router, clock=Clock(1.0), wait_s=5))
    assert failure.value.reason is Reason.NO_SHARD


async def test_a_stream_whose_revision_was_replaced_ends_evicted_by_the_rollout() -> None:
    router = Router("a", failure=UnavailableError("serves another one now", reason=Reason.EVICTED_ROLLOUT))
    shards = Shards(SCRIPT, {"a": (2, UnavailableError("drains", reason=Reason.DRAINING))})
    run = generation(shards, router, clock=Clock(1.0), wait_s=0)
    with pytest.raises(UnavailableError) as failure:
        await drawn(run)
    assert failure.value.reason is Reason.EVICTED_ROLLOUT
    assert run.completion_tokens == 2


async def test_the_deadline_ends_the_wait() -> None:
    with pytest.raises(DeadlineExceededError):
        await drawn(generation(Shards(SCRIPT, {}), Router(), clock=Clock(1.0), timeout_s=4))


async def test_full_shards_are_said_at_once() -> None:
    full = ResourceExhaustedError("full", reason=Reason.KV_EXHAUSTED)
    shards, router = Shards(SCRIPT, {"a": (0, full)}), Router("a")
    with pytest.raises(ResourceExhaustedError) as failure:
        await drawn(generation(shards, router))
    assert failure.value.reason is Reason.KV_EXHAUSTED


async def test_a_request_at_fault_is_not_tried_elsewhere() -> None:
    shards, router = Shards(SCRIPT, {"a": (0, InvalidArgumentError("bad"))}), Router("a", "b")
    with pytest.raises(InvalidArgumentError):
        await drawn(generation(shards, router))
    assert len(shards.requests) == 1


async def test_a_limit_ends_the_answer() -> None:
    order = replace(ORDER, max_new_tokens=2)
    run = generation(Shards(SCRIPT, {}), Router("a"), order=order)
    assert await drawn(run) == ("ab", [0])
    assert str(run.choices[0].finish) == "length"


async def test_a_stop_string_cancels_the_drawing() -> None:
    shards = Shards([1] * 1000, {})
    run = generation(shards, Router("a"), stops=["aaa"])
    assert await drawn(run) == ("", [0])
    assert shards.open_streams == 0
    assert run.completion_tokens == 3


async def test_leaving_the_stream_cancels_the_drawing() -> None:
    shards = Shards([1] * 1000, {})
    events = generation(shards, Router("a")).run()
    await anext(events)
    assert shards.open_streams == 1
    await events.aclose()
    assert shards.open_streams == 0
