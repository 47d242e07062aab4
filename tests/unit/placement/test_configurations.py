from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.configurations import (
    Trial,
    configurations,
    explain_trials,
    read_trials,
    standings,
    with_runs,
    write_trials,
)
from katsura.placement.cost import ErrorClass, Layout, decode_terms
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, Effort, ModelService, Problem
from katsura.placement.trials import RUNS
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def problem(itl_ms: float | None = 50.0) -> Problem:
    service = model_service("chat", cards()[0], 20, itl_ms=itl_ms)
    return problem_of([service], [node_class("H100", 2, per_node=4), node_class("L4", 4, per_node=4)])


def slow(asked: Problem, trial: Trial, factor: float = 1.4) -> float:
    """What an engine that is slower than thought would take."""
    service = asked.services[0]
    assert isinstance(service, ModelService)
    device = next(c.device for c in asked.classes if c.device and c.device.name == trial.device)
    layout = Layout(trial.units, per_node=trial.units)
    terms = decode_terms(service.card, device, service.precision, layout, trial.batch, service.load)
    return factor * asked.calibration.of(device).step_s(terms)


def settled(asked: Problem, factor: float = 1.4) -> list[Trial]:
    ran: list[Trial] = []
    while (following := standings(asked, ran)[0].next) is not None:
        ran.append(replace(following, itl_s=slow(asked, following, factor)))
    return ran


def test_a_table_reads_as_it_was_written() -> None:
    trials = (Trial("chat", "H100", 2, 64, 0.0415), Trial("chat", "L4", 1, 8))
    assert read_trials(write_trials(trials), "t.csv") == trials


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", r"t.csv:1: begins with a,b"),
        ("", r"t.csv:1: begins with nothing"),
        ("deployment,device,units,batch,itl_ms\nchat,L4,1,8,4O\n", r"t.csv:2: itl_ms: .*'4O'"),
        ("deployment,device,units,batch,itl_ms\nchat,L4,1,8,nan\n", r"t.csv:2: itl_ms"),
        ("deployment,device,units,batch,itl_ms\nchat,L4,1,8,-1\n", r"t.csv:2: itl_ms"),
        ("deployment,device,units,batch,itl_ms\nchat,L4,1.5,8,\n", r"t.csv:2: units: .*whole number"),
        ("deployment,device,units,batch,itl_ms\nchat,L4,1,8,40\nchat,L4\n", r"t.csv:3: units"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line_and_column(text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        read_trials(text, "t.csv")


def test_a_few_runs_settle_on_one_that_keeps_the_limit_and_is_near_the_best() -> None:
    asked = problem()
    ran = settled(asked)
    assert 1 <= len(ran) <= RUNS
    (standing,) = standings(asked, ran)
    assert standing.best is not None
    assert standing.best.itl_s is not None
    assert standing.best.itl_s <= 0.05
    service = asked.services[0]
    assert isinstance(service, ModelService)
    rates = {
        (t.device, t.units, t.batch): c.rate(slow(asked, t))
        for t, c in configurations(asked, service)
        if slow(asked, t) <= 0.05
    }
    chosen = standing.best
    assert rates[chosen.device, chosen.units, chosen.batch] > 0.85 * max(rates.values())
    assert "settled" in explain_trials([standing], "t.csv")


def test_what_ran_counts_in_the_plan_as_it_ran_once_it_is_settled(effort: Effort) -> None:
    asked = problem()
    ran = settled(asked)
    device = ran[0].device
    first = with_runs(asked, ran[:1], standings(asked, ran[:1]))
    assert first == asked
    told = with_runs(asked, ran, standings(asked, ran))
    made = plan(told, effort, explain=False)
    assert made.feasible
    times = {round(t.itl_s or 0.0, 9) for t in ran}
    for instance in made.instances:
        point = instance.column.point
        if point is not None and instance.column.members[0].node_class.startswith(device):
            assert point.error_class is ErrorClass.MEASURED
            assert round(point.itl_s, 9) in times


def test_where_every_run_was_too_slow_its_device_is_not_planned_for(effort: Effort) -> None:
    asked = problem()
    ran = settled(asked, factor=30.0)
    told = with_runs(asked, ran, standings(asked, ran))
    made = plan(told, effort, explain=False)
    assert {r.device for r in made.refused if r.reason == "trial"} == {t.device for t in ran}


def test_what_is_asked_for_stays_asked_for_until_it_ran() -> None:
    asked = problem()
    (first,) = standings(asked, [])
    assert first.next is not None
    (again,) = standings(asked, [first.next])
    assert again.next == first.next
    assert "run next" in explain_trials([again], "t.csv")


def test_no_trials_without_a_limit_or_a_replica() -> None:
    assert "itlMs" in standings(problem(None), [])[0].why
    service = replace(problem().services[0], topologies=(SPLIT,))  # type: ignore[arg-type]
    assert "Unified" in standings(replace(problem(), services=(service,)), [])[0].why


def test_a_trial_of_something_else_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="trials of other"):
        standings(problem(), [Trial("other", "L4", 1, 8)])
    with pytest.raises(InvalidArgumentError, match="7 at once on 3 L4 is no configuration"):
        standings(problem(), [Trial("chat", "L4", 3, 7, 0.04)])
