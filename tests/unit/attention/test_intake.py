from __future__ import annotations

import pytest

from katsura.attention.core.intake import Generate, Intake, Resumed
from katsura.attention.core.plan import Admitted, Drew, Ended, Failed, Finish, Opened
from katsura.attention.core.schedule import Limits
from katsura.attention.core.sequence import Owner, Program
from katsura.domain.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)

OWNER, STRANGER = Owner("t", b"n" * 32), Owner("u", b"m" * 32)
NEVER = 1e18


def shard(**more: int) -> Intake:
    limits = {"page_count": 16, "page_tokens": 4, "step_tokens": 16, "context_tokens": 32, "vocab_size": 100} | more
    return Intake(Limits(**limits))


def ask(intake: Intake, call: int = 1, tokens: tuple[int, ...] = (1, 2, 3), count: int = 2, **more: object) -> None:
    fields: dict[str, object] = {"sequence_id": "", "new_ids": (f"g{call}",), "deadline_s": NEVER, "resumed": ()}
    fields |= more
    intake.generate(
        Generate(call=call, owner=OWNER, program=Program(), tokens=tokens, new_tokens_max=count, stop_ids=(), **fields)  # type: ignore[arg-type]
    )


def keep(intake: Intake, name: str = "k", tokens: tuple[int, ...] = (1, 2, 3, 4, 5), keep_s: float = 10.0) -> None:
    intake.open(7, "", OWNER, Program(), name, tokens, keep_s, NEVER, 0.0)
    run(intake)


def run(intake: Intake, now_s: float = 0.0) -> None:
    while (plan := intake.schedule.plan(now_s)) is not None:
        intake.schedule.commit(plan, {row.sequence_id: 50 for row in plan.rows if row.draws}, now_s)


def test_a_prompt_that_can_never_fit_says_how_much_would() -> None:
    with pytest.raises(OutOfRangeError, match="at most 31") as caught:
        ask(shard(), tokens=(1,) * 40)
    assert caught.value.reason is Reason.CONTEXT_TOO_LONG
    assert caught.value.field == "token_ids"


def test_the_arena_bounds_the_context_too() -> None:
    with pytest.raises(OutOfRangeError, match="at most 11"):
        ask(shard(page_count=4), tokens=(1,) * 12)


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="0 to 99"):
        ask(shard(), tokens=(1, 100))


def test_a_full_queue_and_a_full_table_are_two_reasons() -> None:
    intake = shard(waiting_max=1)
    ask(intake, 1)
    with pytest.raises(ResourceExhaustedError) as full:
        ask(intake, 2)
    assert full.value.reason is Reason.QUEUE_FULL
    intake = shard(sequences_max=1)
    keep(intake)
    with pytest.raises(ResourceExhaustedError) as exhausted:
        ask(intake, 2)
    assert exhausted.value.reason is Reason.KV_EXHAUSTED


def test_opening_again_under_the_same_request_id_answers_the_same_sequence() -> None:
    intake = shard()
    for call, name in ((1, "first"), (2, "second")):
        intake.open(call, "r", OWNER, Program(), name, (1, 2), 10.0, NEVER, 0.0)
    run(intake)
    intake.open(3, "r", OWNER, Program(), "third", (1, 2), 10.0, NEVER, 0.0)
    intake.open(4, "r", STRANGER, Program(), "other", (1, 2), 10.0, NEVER, 0.0)
    opened = [o for o in intake.take_outcomes(0.0) if isinstance(o, Opened)]
    assert [(o.call, o.sequences[0].sequence_id) for o in opened] == [(1, "first"), (2, "first"), (3, "first")]


def test_another_tenants_sequence_is_an_unknown_one() -> None:
    intake = shard()
    keep(intake)
    with pytest.raises(NotFoundError) as caught:
        intake.truncate(STRANGER, "k", 2, 0.0)
    with pytest.raises(NotFoundError) as unknown:
        intake.truncate(OWNER, "?", 2, 0.0)
    assert caught.value.reason is unknown.value.reason is Reason.SEQUENCE_NOT_FOUND
    intake.delete(STRANGER, "k")
    assert "k" in intake.sequences


def test_what_passes_its_deadline_fails_and_gives_its_pages_back() -> None:
    intake = shard()
    ask(intake, 1, deadline_s=5.0)
    intake.schedule.plan(0.0)
    intake.expire(5.0, "no member holds group 3")
    admitted, failed = intake.take_outcomes(0.0)
    assert isinstance(admitted, Admitted)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DeadlineExceededError)
    assert "group 3" in failed.error.message
    assert (intake.cache.pool.free_count, intake.sequences) == (16, {})


def test_a_kept_sequence_goes_when_its_time_has_passed_and_each_touch_begins_it_anew() -> None:
    intake = shard()
    keep(intake, keep_s=10.0)
    intake.truncate(OWNER, "k", 4, 9.0)
    intake.expire(18.0)
    assert "k" in intake.sequences
    intake.expire(19.0)
    assert intake.sequences == {}
    assert intake.cache.pool.free_count == 16


def test_a_cancelled_call_leaves_nothing_and_says_nothing() -> None:
    intake = shard()
    ask(intake, 1, count=9, new_ids=("a", "b"))
    intake.schedule.plan(0.0)
    intake.take_outcomes(0.0)
    intake.cancel(1, 0.0)
    assert intake.take_outcomes(0.0) == []
    assert (intake.cache.pool.free_count, intake.sequences) == (16, {})


def test_a_sequence_that_is_being_computed_is_not_cut() -> None:
    intake = shard()
    keep(intake)
    ask(intake, 2, (), sequence_id="k")
    with pytest.raises(FailedPreconditionError):
        intake.truncate(OWNER, "k", 2, 0.0)


def test_a_fork_beyond_what_is_computed_waits_for_its_parent() -> None:
    intake = shard(step_tokens=4)
    intake.open(1, "", OWNER, Program(), "p", tuple(range(10)), 10.0, NEVER, 0.0)
    intake.fork(2, "", OWNER, "p", ("c",), 0, NEVER)
    plan = intake.schedule.plan(0.0)
    assert plan is not None
    intake.schedule.commit(plan, {}, 0.0)
    assert intake.take_outcomes(0.0) == []
    run(intake)
    opened = {o.call: o.sequences[0] for o in intake.take_outcomes(0.0) if isinstance(o, Opened)}
    assert (opened[2].token_count, opened[2].computed_tokens) == (10, 10)
    assert intake.sequences["c"].pages == intake.sequences["p"].pages


def test_a_rebuilt_answer_goes_on_at_its_position_and_draws_the_rest() -> None:
    intake = shard()
    ask(
        intake,
        1,
        count=4,
        new_ids=("a", "b", "c"),
        resumed=(Resumed((9, 9, 9), False), Resumed((9,), True), Resumed((), False)),
    )
    run(intake)
    drew = [o for o in intake.take_outcomes(0.0) if isinstance(o, Drew)]
    assert [(o.choice, o.position) for o in drew if o.choice == 0] == [(0, 3)]
    assert [o.position for o in drew if o.choice == 2] == [0, 1, 2, 3]
    assert not [o for o in drew if o.choice == 1]


def test_a_draining_shard_refuses_new_work_and_then_evicts_the_rest() -> None:
    intake = shard()
    keep(intake)
    ask(intake, 1, count=9)
    intake.schedule.plan(0.0)
    intake.draining = True
    with pytest.raises(UnavailableError) as caught:
        ask(intake, 2)
    assert caught.value.reason is Reason.DRAINING
    intake.take_outcomes(0.0)
    intake.evict_all()
    assert intake.take_outcomes(0.0) == [Ended(1, 0, Finish.EVICTED)]
    assert (intake.cache.pool.free_count, intake.sequences) == (16, {})


def test_dropping_a_tenants_pages_leaves_those_of_others() -> None:
    intake = shard()
    keep(intake)
    intake.open(8, "", STRANGER, Program(), "s", (1, 2, 3, 4, 5), 10.0, NEVER, 0.0)
    run(intake)
    assert intake.drop_pages(OWNER, [], all_pages=True) == 1
    assert len(intake.cache.index) == 1
