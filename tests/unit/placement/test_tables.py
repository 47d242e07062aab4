from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import ErrorClass
from katsura.placement.explain import explain
from katsura.placement.operate import Point
from katsura.placement.patterns import Patterns, enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import UNIFIED, Effort, Problem, Timed
from katsura.placement.tables import read_points, with_points
from katsura.testing.clusters import cards, model_service, node_class, problem_of

HEAD = "deployment,device,engine,version,units,prompt,output,batch,itl_ms,note\n"


def problem(
    rows: tuple[Timed, ...], itl_ms: float = 30.0, extrapolate: bool = False, confidence: float = 0.9
) -> Problem:
    service = model_service("chat", cards()[0], 1.0, itl_ms=itl_ms, topologies=(UNIFIED,))
    service = replace(service, load=replace(service.load, prompt=1000, output=200, cached_share=0.0))
    made = problem_of([service], [node_class("H100", 1)])
    if extrapolate:
        made = replace(made, calibration=made.calibration.extrapolating())
    return with_points(replace(made, confidence=confidence), [("chat", row) for row in rows], "t.csv")


def planned(
    rows: tuple[Timed, ...], itl_ms: float = 30.0, extrapolate: bool = False, confidence: float = 0.9
) -> Patterns:
    return enumerate_patterns(problem(rows, itl_ms, extrapolate, confidence))


def rows(*sizes: tuple[int, float], prompt: int = 1000) -> tuple[Timed, ...]:
    return tuple(Timed("H100", 1, prompt, 200, batch, ms / 1e3, "vllm 0.12") for batch, ms in sizes)


def test_a_table_is_read_and_further_columns_are_left() -> None:
    assert read_points(HEAD + "chat,H100,vllm,0.12,2,1000,200,16,21.5,fast\n", "t.csv") == (
        ("chat", Timed("H100", 2, 1000, 200, 16, 0.0215, "vllm 0.12")),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployment,device\n", "t.csv:1: lacks engine"),
        (HEAD + "chat,H100,vllm,1,2,1000,200,16,\n", "t.csv:2: itl_ms: expected a number above 0"),
        (HEAD + "chat,H100,vllm,1,2,1000,200,1.5,3\n", "t.csv:2: batch: expected a whole number above 0, got '1.5'"),
        (
            HEAD + "chat,H100,vllm,1,1,9,9,1,3\nchat,H100,vllm,2,1,9,9,1,3\n",
            "t.csv:3: version: vllm 2, but line 2 of chat on H100 is of vllm 1",
        ),
    ],
)
def test_what_is_wrong_names_file_line_and_column(text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        read_points(text, "t.csv")
    assert said in str(error.value)


def test_rows_of_a_stranger_are_refused() -> None:
    service = model_service("chat", cards()[0], 1.0)
    with pytest.raises(InvalidArgumentError, match="no deployment is called other; known: chat"):
        with_points(problem_of([service], [node_class("H100", 1)]), [("other", rows((1, 9.0))[0])], "t.csv")


def by_units(found: Patterns) -> dict[int, Point]:
    return {shape.units: shape.point for shape in found.shapes["chat"]}


def test_a_row_counts_as_it_ran() -> None:
    point = by_units(planned(rows((8, 20.0), (32, 29.9), (128, 55.0))))[1]
    assert (point.batch, point.itl_s, point.margin) == (32, 0.0299, 1.0)
    assert point.error_class is ErrorClass.MEASURED


def test_between_rows_a_step_is_interpolated_and_held_with_its_margin() -> None:
    table = rows((8, 20.0), (32, 50.0))
    point = by_units(planned(table, itl_ms=41.5))[1]
    assert point.error_class is ErrorClass.INTERPOLATED
    assert 8 < point.batch < 32
    assert point.margin is not None
    assert point.itl_s < point.itl_s * point.margin <= 0.0415 * 1.05
    daring = by_units(planned(table, itl_ms=41.5, confidence=0.5))[1]
    assert daring.batch > point.batch


def test_beyond_the_rows_of_a_table_its_own_fit_answers_and_is_marked() -> None:
    found = by_units(planned(rows((8, 10.0), (16, 11.0), (32, 12.0))))
    assert found[1].error_class is ErrorClass.EXTENDED
    assert 32 < found[1].batch <= 128
    assert found[4].error_class is ErrorClass.EXTENDED
    assert 8 not in found  # four times beyond a table of one device


def test_rows_of_four_cores_are_no_rows_of_two() -> None:
    service = model_service("chat", cards()[0], 1.0, itl_ms=None, topologies=(UNIFIED,))
    service = replace(service, load=replace(service.load, prompt=1000, output=200, cached_share=0.0))
    made = problem_of([service], [node_class("cpu", 1)])
    made = with_points(made, [("chat", Timed("cpu", 4, 1000, 200, b, 0.5 + b / 100)) for b in (1, 8)], "t.csv")
    trusts = {size: point.error_class for size, point in by_units(enumerate_patterns(made)).items()}
    assert trusts[4] is not trusts[2]
    assert trusts[2] is ErrorClass.EXTENDED


def test_what_the_table_does_not_reach_is_refused_unless_guesses_are_asked_for() -> None:
    elsewhere = rows((8, 20.0), (32, 29.0), prompt=5000)
    found = planned(elsewhere)
    assert not found.shapes["chat"]
    assert "prompts of 1000; measured were 5000 to 5000" in found.refused[0].detail
    assert planned(elsewhere, extrapolate=True).shapes["chat"]


def test_a_table_whose_rows_are_all_too_slow_says_so() -> None:
    found = planned(rows((8, 900.0), (32, 990.0)))
    assert found.refused[0].reason == "table"


def test_a_plan_says_what_its_tables_are_worth() -> None:
    asked = problem(rows(*((b, 10 + b / 4) for b in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96))))
    made = plan(asked, Effort(nodes=10, seconds=None))
    (use,) = made.tables
    assert (use.service, use.device, use.rows) == ("chat", "H100", 11)
    assert 8 <= use.judged <= 11
    assert 0 < use.median_error < 0.1
    text = explain(made, asked)
    assert "chat on H100: 11 rows of vllm 0.12" in text
    assert f"{made.services[0].point.itl_s * 1e3:.1f} ms, " in text if made.services[0].point else False
