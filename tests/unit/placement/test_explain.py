from __future__ import annotations

from dataclasses import replace

from katsura.placement.document import document, running
from katsura.placement.explain import explain, explain_change, explain_what_if
from katsura.placement.plan import Marginal
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, ModelService, Objective, Problem
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


def test_a_bound_on_serving_all_is_not_told_as_one_on_serving_a_part(small: Problem, effort: Effort) -> None:
    poor = replace(small, budget_usd=1.0)
    assert "; all of it, with nodes free to cut: " in explain(plan(poor, effort), poor)
    assert "; with nodes free to cut: " in explain(plan(small, effort), small)


def test_what_one_more_node_would_change_is_always_said(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    idle = replace(made, marginals=())
    assert "One more node of\n  any kind: saves nothing, by the linear bound" in explain(idle, small)
    told = explain(replace(made, marginals=(Marginal("L4x4/b", -2.5),)), small)
    assert "One more node of\n  L4x4/b: saves $2.50/h\n" in told


def test_sizes_that_are_guessed_are_told_and_counted(small: Problem, effort: Effort) -> None:
    sure, unsure = small.services[0], small.services[1]
    assert isinstance(unsure, ModelService)
    odd = replace(unsure, card=replace(unsure.card, family="jamba", exact=False))
    problem = replace(small, services=(sure, odd, *small.services[2:]))
    made = plan(problem, effort, explain=False)
    billions = f"{odd.card.parameters / 1e9:.3g} billion parameters"
    text = explain(made, problem)
    assert f"Sizes that are not sure\n  {odd.name}: nobody has compared how jamba is counted" in text
    assert billions in text
    told = document(made, problem)["status"]["guessedSizes"]
    assert told == [{"service": odd.name, "family": "jamba", "parameters": odd.card.parameters}]
    assert "guessedSizes" not in document(made, small)["status"]
    assert "not sure" not in explain(made, small)


def test_an_optimum_within_a_gap_is_called_near_enough(small: Problem, effort: Effort) -> None:
    made = replace(plan(small, effort, explain=False), ended="optimal", gap=0.0)
    assert explain(made, small).endswith("Search: optimal.")
    assert explain(replace(made, gap=0.004), small).endswith("Search: near enough (--gap).")


def test_changes_are_numbered_steps(small: Problem, effort: Effort) -> None:
    before = running(plan(small, effort))
    assert explain_change(replan(small, effort, before)).startswith("Keep what runs")
    assert "1. start" in explain_change(replan(changed(small, "demand:chat=x2"), effort, before))


def test_a_what_if_says_the_difference(small: Problem, effort: Effort) -> None:
    made = plan(small, effort)
    other = plan(changed(small, "price:A100-80=4"), effort, explain=False)
    assert "+$" in explain_what_if("price:A100-80=4", made, other)
    cool = replace(small, objective=Objective.ENERGY)
    watts = plan(cool, effort, explain=False)
    said = explain_what_if("demand:chat=x2", watts, plan(changed(cool, "demand:chat=x2"), effort, explain=False))
    assert f" W (it was {watts.value:.4g} W), $" in said
    starved = plan(changed(small, "demand:chat=x100"), effort, explain=False)
    assert "not everything fits" in explain_what_if("demand:chat=x100", made, starved)
