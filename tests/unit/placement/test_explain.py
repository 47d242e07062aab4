from __future__ import annotations

from dataclasses import replace

from katsura.placement.document import running
from katsura.placement.explain import explain, explain_change, explain_what_if
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Problem
from katsura.placement.replan import replan
from katsura.placement.whatif import changed


def test_a_plan_reads_from_cost_and_gap_to_nodes_and_reasons(small: Problem, effort: Effort) -> None:
    text = explain(plan(small, effort), small)
    order = ["$", "gap", "service", "Who goes where", "What limits it", "Other ways, and why not", "Prices:"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert "A100-80x8" in text


def test_what_does_not_fit_is_said_first(small: Problem, effort: Effort) -> None:
    poor = replace(small, budget_usd=1.0)
    text = explain(plan(poor, effort), poor)
    assert text.startswith("NOT EVERYTHING FITS (chat serves 0%")
    assert "Ways to serve everything" in text


def test_changes_are_numbered_steps(small: Problem, effort: Effort) -> None:
    before = running(plan(small, effort))
    assert explain_change(replan(small, effort, before)).startswith("Keep what runs")
    assert "1. start" in explain_change(replan(changed(small, "demand:chat=x2"), effort, before))


def test_a_what_if_says_the_difference(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    other = plan(changed(small, "price:A100-80=4"), effort, explain=False)
    assert "+$" in explain_what_if("price:A100-80=4", made, other)
    starved = plan(changed(small, "demand:chat=x100"), effort, explain=False)
    assert "not everything fits" in explain_what_if("demand:chat=x100", made, starved)
