from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.agents import AgentGraph, AgentRuns, Call, Edge, summarise
from katsura.placement.cost import ErrorClass
from katsura.placement.operate import Point

CALLS = (Call("plan", "big", 4.0), Call("act", "small", 1.0), Call("tool", "", 2.0), Call("check", "small", 0.5))


def react(again: float) -> AgentGraph:
    return AgentGraph(
        CALLS,
        (Edge("plan", "act"), Edge("act", "tool"), Edge("tool", "act", again), Edge("tool", "check", 1 - again)),
    )


def test_a_loop_is_expected_as_often_as_it_is_taken() -> None:
    assert react(0.75).visits() == pytest.approx({"plan": 1, "act": 4, "tool": 4, "check": 1})


@pytest.mark.parametrize("again", [0.9, 0.999, 0.999999])
def test_a_loop_that_is_seldom_left_is_counted_to_its_end(again: float) -> None:
    assert react(again).visits() == pytest.approx(
        {"plan": 1, "act": 1 / (1 - again), "tool": 1 / (1 - again), "check": 1}
    )


def test_calls_that_no_run_reaches_are_never_made_and_never_in_the_way() -> None:
    apart = (Edge("plan", "act"), Edge("tool", "check"), Edge("check", "tool"), Edge("tool", "act", 0.0))
    assert AgentGraph(CALLS, apart).visits() == {"plan": 1, "act": 1, "tool": 0, "check": 0}


def test_demand_and_sandboxes_follow_from_visits() -> None:
    graph = react(0.5)
    assert graph.demand(10) == pytest.approx({"big": 10, "small": 30})
    assert graph.concurrent(10)["tool"] == pytest.approx(40)
    assert graph.mean_seconds() == pytest.approx(4 + 2 + 4 + 0.5)


def test_the_critical_path_is_the_longest_branch() -> None:
    graph = AgentGraph(
        CALLS, (Edge("plan", "act", 0.5), Edge("plan", "tool", 0.5), Edge("act", "check"), Edge("tool", "check"))
    )
    path, seconds = graph.critical_path()
    assert path == ("plan", "tool", "check")
    assert seconds == pytest.approx(6.5)
    assert react(0.5).critical_path()[0] == ("plan", "act", "tool", "check")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="never left"):
        react(1.0).visits()
    with pytest.raises(InvalidArgumentError, match="names no call"):
        AgentGraph(CALLS, (Edge("plan", "nap"),))
    with pytest.raises(InvalidArgumentError, match="add up to"):
        AgentGraph(CALLS, (Edge("plan", "act"), Edge("plan", "tool", 0.5)))


def test_calls_of_models_last_as_long_as_the_plan_says() -> None:
    point = Point(8, 0.02, 0.5, 3.0, "itl", ErrorClass.PRIOR, 0.0)
    graph = AgentGraph(
        (Call("ask", "big", 0.0, 101), Call("tool", "", 2.0)), (Edge("ask", "tool", 0.5), Edge("tool", "ask"))
    )
    made = summarise(AgentRuns("a", graph, 3.0, 6.0), {"big": point})
    assert made.path == ("ask", "tool")
    assert made.calls[0].seconds == pytest.approx(2.5)
    assert made.path_s == pytest.approx(2 * 2.5 + 2.0)
    assert made.calls[0].at_once == pytest.approx(3 * 2 * 2.5)
    assert not made.kept
    assert not summarise(AgentRuns("a", graph, 3.0), {}).kept
    assert summarise(AgentRuns("a", graph, 3.0, 8.0), {"big": point}).kept
