from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.cost import ErrorClass
from katsura.placement.patterns import Patterns, enumerate_patterns
from katsura.placement.problem import UNIFIED, ModelService, Timed
from katsura.placement.tables import read_points, with_points
from katsura.testing.clusters import cards, model_service, node_class, problem_of

HEAD = "deployment,device,engine,version,units,prompt,output,batch,itl_ms,note\n"


def planned(rows: tuple[Timed, ...], itl_ms: float = 30.0, extrapolate: bool = False) -> tuple[ModelService, Patterns]:
    service = model_service("chat", cards()[0], 1.0, itl_ms=itl_ms, topologies=(UNIFIED,))
    service = replace(service, load=replace(service.load, prompt=1000, output=200, cached_share=0.0))
    problem = problem_of([service], [node_class("H100", 1)])
    if extrapolate:
        problem = replace(problem, calibration=problem.calibration.extrapolating())
    problem = with_points(replace(problem, confidence=0.9), [("chat", row) for row in rows], "t.csv")
    return service, enumerate_patterns(problem)


def rows(*sizes: tuple[int, float], prompt: int = 1000) -> tuple[Timed, ...]:
    return tuple(Timed("H100", 1, prompt, 200, batch, ms / 1e3) for batch, ms in sizes)


def test_a_table_is_read_and_further_columns_are_left() -> None:
    assert read_points(HEAD + "chat,H100,vllm,0.12,2,1000,200,16,21.5,fast\n", "t.csv") == (
        ("chat", Timed("H100", 2, 1000, 200, 16, 0.0215)),
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


def test_a_row_counts_as_it_ran() -> None:
    _, found = planned(rows((8, 20.0), (32, 29.0)))
    (shape,) = found.shapes["chat"]
    assert (shape.point.batch, shape.point.itl_s) == (32, 0.029)
    assert shape.point.error_class is ErrorClass.MEASURED


def test_between_rows_a_step_is_interpolated_and_held_with_its_margin() -> None:
    _, found = planned(rows((8, 20.0), (32, 40.0)))
    (shape,) = found.shapes["chat"]
    assert 8 <= shape.point.batch < 32
    _, loose = planned(rows((8, 20.0), (32, 50.0)), itl_ms=49.0)
    (between,) = loose.shapes["chat"]
    assert between.point.error_class is ErrorClass.INTERPOLATED
    assert between.point.itl_s < 0.049


def test_what_the_table_does_not_reach_is_refused_unless_guesses_are_asked_for() -> None:
    elsewhere = rows((8, 20.0), (32, 29.0), prompt=4000)
    _, found = planned(elsewhere)
    assert not found.shapes["chat"]
    assert "prompts of 1000; measured were 4000 to 4000" in found.refused[0].detail
    _, daring = planned(elsewhere, extrapolate=True)
    assert daring.shapes["chat"]


def test_a_table_whose_rows_are_all_too_slow_says_so() -> None:
    _, found = planned(rows((8, 90.0), (32, 99.0)))
    assert found.refused[0].reason == "table"
