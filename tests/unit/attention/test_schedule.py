"""Exact steps: (sequence, first position, tokens) of every row of every step."""

from __future__ import annotations

from katsura.attention.core.intake import Generate, Intake
from katsura.attention.core.plan import Admitted, Drew, Finish, StepPlan
from katsura.attention.core.schedule import Limits
from katsura.attention.core.sequence import Owner, Program

OWNER = Owner("t", b"n" * 32)
NEVER = 1e18


def shard(*, pages: int = 32, page_tokens: int = 4, step: int = 8, context: int = 64, **more: int) -> Intake:
    return Intake(Limits(pages, page_tokens, step, context, 100, **more))


def ask(
    intake: Intake,
    name: str,
    prompt: int,
    count: int = 2,
    *,
    program: str = "",
    priority: int = 0,
    choices: int = 1,
    first: int = 1,
) -> None:
    tokens = tuple(range(first, first + prompt))
    ids = tuple(name if not choice else f"{name}.{choice}" for choice in range(choices))
    who = Program(program, priority=priority)
    call = 1 + len(intake.sequences)
    intake.generate(Generate(call, OWNER, who, "", ids, tokens, count, (), NEVER))


def rows(plan: StepPlan | None) -> list[tuple[str, int, int]]:
    return [] if plan is None else [(row.sequence_id, row.start, len(row.tokens)) for row in plan.rows]


def step(intake: Intake) -> list[tuple[str, int, int]]:
    plan = intake.schedule.plan(0.0)
    if plan is not None:
        intake.schedule.commit(plan, {row.sequence_id: 50 for row in plan.rows if row.draws}, 0.0)
    return rows(plan)


def steps(intake: Intake) -> list[list[tuple[str, int, int]]]:
    taken = []
    while row := step(intake):
        taken.append(row)
    return taken


def test_decodes_run_first_and_prompts_share_what_is_left_of_the_budget() -> None:
    intake = shard(step=8)
    ask(intake, "a", 3, 3)
    assert step(intake) == [("a", 0, 3)]
    ask(intake, "b", 12, 2, first=30)
    assert steps(intake) == [
        [("a", 3, 1), ("b", 0, 7)],
        [("a", 4, 1), ("b", 7, 5)],
        [("b", 12, 1)],
    ]


def test_several_prompts_are_prefilled_in_one_step() -> None:
    intake = shard(step=8)
    ask(intake, "a", 3, 1)
    ask(intake, "b", 3, 1, first=20)
    ask(intake, "c", 4, 1, first=40)
    assert steps(intake) == [[("a", 0, 3), ("b", 0, 3), ("c", 0, 2)], [("c", 2, 2)]]


def test_programs_are_served_by_their_first_arrival_and_larger_priorities_before_that() -> None:
    intake = shard(step=4)
    ask(intake, "old1", 4, 1, program="old", first=1)
    ask(intake, "new", 4, 1, program="new", first=20)
    ask(intake, "old2", 4, 1, program="old", first=40)
    ask(intake, "urgent", 4, 1, program="u", priority=1, first=60)
    assert [row[0][0] for row in steps(intake)] == ["urgent", "old1", "old2", "new"]


def test_a_second_prompt_takes_the_cached_pages_of_the_first() -> None:
    intake = shard(step=64)
    ask(intake, "a", 10, 1)
    assert step(intake) == [("a", 0, 10)]
    ask(intake, "b", 10, 1)
    assert step(intake) == [("b", 8, 2)]
    admitted = [outcome for outcome in intake.take_outcomes(0.0) if isinstance(outcome, Admitted)]
    assert [(one.prompt_tokens, one.cached_tokens) for one in admitted] == [(10, 0), (10, 8)]


def test_choices_wait_for_the_prompt_and_then_copy_only_its_last_page() -> None:
    intake = shard(step=64)
    ask(intake, "a", 6, 2, choices=3)
    assert step(intake) == [("a", 0, 6)]
    plan = intake.schedule.plan(0.0)
    assert rows(plan) == [("a", 6, 1), ("a.1", 5, 1), ("a.2", 5, 1)]
    assert plan is not None
    first, second, third = (row.pages for row in plan.rows)
    assert first[0] == second[0] == third[0]
    assert len({first[1], second[1], third[1]}) == 3
    assert len(plan.copies) == 2 or plan.rows[0].pages[1] in dict(plan.copies).values()


def test_the_last_in_order_gives_its_pages_up_when_they_run_out() -> None:
    intake = shard(pages=5, page_tokens=4, step=64)
    ask(intake, "a", 7, 6, first=1)
    ask(intake, "b", 7, 6, first=30)
    taken = steps(intake)
    assert taken[:3] == [
        [("a", 0, 7), ("b", 0, 7)],
        [("a", 7, 1), ("b", 7, 1)],
        [("a", 8, 1)],
    ], "the fifth page goes to a; b is first computed again when a has ended"
    assert [row for rows in taken for row in rows if row[0] == "b"][2][1] in (0, 4, 8), "b goes on from cached pages"
    drawn = [o.call for o in intake.take_outcomes(0.0) if isinstance(o, Drew)]
    assert (drawn.count(1), drawn.count(2)) == (6, 6)
    assert intake.cache.pool.free_count == 5


def test_kept_sequences_that_nobody_uses_give_their_pages_before_running_ones() -> None:
    intake = shard(pages=6, page_tokens=4, step=64)
    intake.open(9, "", OWNER, Program(), "kept", tuple(range(40, 48)), 60.0, NEVER, 0.0)
    assert step(intake) == [("kept", 0, 8)]
    ask(intake, "a", 16, 2)
    assert steps(intake) == [[("a", 0, 16)], [("a", 16, 1)]]
    assert intake.sequences["kept"].computed == 0
    assert intake.sequences["kept"].tokens == list(range(40, 48))


def test_an_answer_ends_at_the_end_of_the_context() -> None:
    intake = shard(context=6)
    ask(intake, "a", 4, 50)
    steps(intake)
    last = [outcome for outcome in intake.take_outcomes(0.0) if isinstance(outcome, Drew)][-1]
    assert (last.position, last.finish) == (1, Finish.LENGTH)


def test_a_step_that_is_not_committed_is_planned_again() -> None:
    intake = shard()
    ask(intake, "a", 5, 1)
    assert rows(intake.schedule.plan(0.0)) == [("a", 0, 5)]
    assert rows(intake.schedule.plan(0.0)) == [("a", 0, 5)]
    assert step(intake) == [("a", 0, 5)]
