from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement.curve import curve_of
from katsura.placement.document import Current, Running, current_of, document, running
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.plan import Place, Plan
from katsura.placement.planner import plan
from katsura.placement.problem import SPLIT, UNIFIED, Effort, ModelService, NodeClass, Problem
from katsura.placement.replan import replan
from katsura.placement.standing import named_now, standing_plan
from katsura.testing.clusters import cards, model_service, node_class, problem_of


def cut(c: NodeClass, nodes: int, cores: float) -> tuple[NodeClass, NodeClass]:
    """`c` as two classes: others have taken cores of its first nodes."""
    return (
        replace(c, name=f"{c.name}/less", cores=cores, nodes=c.nodes[:nodes]),
        replace(c, name=f"{c.name}/more", nodes=c.nodes[nodes:]),
    )


def stands(problem: Problem, current: Current) -> Plan | str:
    return standing_plan(problem, enumerate_patterns(problem).columns(problem.classes), current)


@pytest.fixture
def problem() -> Problem:
    nodes = [node_class("L4", 4, per_node=4), node_class("A100-80", 2, usd=99.0, spot=True)]
    return problem_of([model_service("chat", cards()[0], 10, itl_ms=100)], nodes)


@pytest.fixture
def before(problem: Problem, effort: Effort) -> Current:
    return running(plan(problem, effort, explain=False))


def test_what_runs_stays_where_pods_of_others_make_two_classes_of_one(
    problem: Problem, before: Current, effort: Effort
) -> None:
    parted = replace(problem, classes=(*cut(problem.classes[0], 1, 60.0), *problem.classes[1:]))
    change = replan(parted, effort, before)
    assert (change.kept, change.steps) == (True, ())
    assert {p.node for i in change.plan.instances for p in i.places} == {
        p.node for i in before.instances for p in i.places
    }
    assert {p.node_class for i in change.plan.instances for p in i.places} <= {c.name for c in parted.classes}


def test_instances_that_no_column_is_like_keep_their_names_on_two_of_what_was_one_class() -> None:
    places = tuple(Place("experts", "L4x4/a", node, 1, 1.0, 1.0) for node in ("L4x4/a-0", "L4x4/a-3"))
    apart = Current((Running("chat/Split[experts:2x1@L4x4/a]", "chat", places),))
    classes = cut(node_class("L4", 4, per_node=4), 1, 60.0)
    assert named_now(apart, classes, ()) == (apart, ())
    together = replace(apart.instances[0], places=(places[1], places[1]))
    (found,) = named_now(Current((together,)), classes, ())[0].instances
    assert found.key == "chat/Split[experts:2x1@L4x4/a/more]"


@pytest.fixture
def split() -> Problem:
    services = [
        model_service("chat", cards()[3], 0.1, itl_ms=400, topologies=(SPLIT,)),
        model_service("other", cards()[0], 1, itl_ms=100, topologies=(UNIFIED,)),
    ]
    return problem_of(services, [node_class("L40S", 24, per_node=1)])


def test_a_split_whose_nodes_become_two_classes_stays_and_so_it_does_when_they_are_one_again(
    split: Problem, effort: Effort
) -> None:
    whole = replan(split, effort, Current(()))
    chat = next(i for i in whole.plan.instances if i.column.service == "chat")
    (c,) = split.classes
    taken = next(p.node for p in chat.places if p.role == "experts")
    less = replace(c, name="less", cores=c.cores - 1, nodes=(taken,))
    parted = replace(split, classes=(replace(c, nodes=tuple(n for n in c.nodes if n != taken)), less))

    change = replan(parted, effort, running(whole.plan))
    assert (change.kept, change.steps) == (True, ())
    stays = next(i for i in change.plan.instances if i.column.service == "chat")
    assert [p.node for p in stays.places] == [p.node for p in chat.places]
    assert {p.node_class for p in stays.places} == {c.name, "less"}
    assert stays.column.requests_s == chat.column.requests_s
    assert isinstance(split.services[0], ModelService)
    of = split.services[0]
    assert curve_of(parted, stays.column, of) == curve_of(split, chat.column, of)

    stored = current_of(document(change.plan, parted))
    assert stored == running(change.plan)
    assert replan(parted, effort, stored).kept
    again = replan(split, effort, stored)
    assert again.kept
    assert running(again.plan) == running(whole.plan)

    grown = replace(parted, services=(of, replace(split.services[1], requests_s=1e3)))
    larger = replan(grown, effort, stored)
    assert larger.steps
    assert {s.service for s in larger.steps} == {"other"}


def test_what_is_beyond_a_limit_or_has_no_place_cannot_stay_and_says_why(problem: Problem, before: Current) -> None:
    assert isinstance(stands(problem, before), Plan)
    (chat,) = problem.services
    first = replace(before.instances[0], service="other")
    half = replace(before.instances[0], places=())
    l4 = problem.classes[0]
    for changed, current, why in (
        (replace(problem, budget_usd=0.5), before, "budget"),
        (replace(problem, quotas={"L4": 0.0}), before, "quota"),
        (replace(problem, services=(replace(chat, replicas={"unified": 1}),)), before, "asked for"),
        (replace(problem, classes=(replace(l4, spot=True),)), before, "spot"),
        (replace(problem, classes=(replace(l4, nodes=("new",)),)), before, "gone"),
        (replace(problem, classes=(replace(l4, ram_bytes=1.0),)), before, "no plan would take"),
        (problem, Current((first, *before.instances)), "nobody asks"),
        (problem, Current((half, *before.instances)), "no plan would take"),
        (problem, Current(before.instances * 20), "less room"),
    ):
        said = stands(changed, current)
        assert isinstance(said, str), why
        assert why in said


def test_a_plan_beyond_a_new_limit_is_left(problem: Problem, before: Current, effort: Effort) -> None:
    spot = replace(problem.services[0], spot_share=1.0)
    change = replan(replace(problem, services=(spot,), quotas={"L4": 0.0}), effort, before)
    assert not change.kept
    assert "quota" in change.why
    assert {p.node_class.split("x")[0] for i in change.plan.instances for p in i.places} == {"A100-80"}


def test_shares_of_cores_are_read_back_as_they_fit(effort: Effort) -> None:
    nodes = replace(node_class("L4", 1, per_node=3), cores=5.9)
    asked = problem_of([model_service("chat", cards()[0], 2, itl_ms=100)], [nodes])
    asked = replace(asked, services=(replace(asked.services[0], replicas={"unified": 3}),))  # type: ignore[call-arg]
    made = plan(asked, effort, explain=False)
    assert len(made.instances) == 3
    assert replan(asked, effort, current_of(document(made, asked))).kept


def test_processes_that_need_more_than_they_have_get_it_or_do_not_stay(problem: Problem, before: Current) -> None:
    small = [replace(i, places=tuple(replace(p, ram_bytes=1.0) for p in i.places)) for i in before.instances]
    large = [replace(i, places=tuple(replace(p, ram_bytes=9e9) for p in i.places)) for i in before.instances]
    for asked, wanted in ((small, before.instances), (large, large)):
        found = stands(problem, Current(tuple(asked)))
        assert isinstance(found, Plan)
        assert [i.places for i in found.instances] == [i.places for i in wanted]


def test_where_not_everything_can_be_served_nothing_moves_for_nothing(problem: Problem, effort: Effort) -> None:
    asked = replace(problem, services=(replace(problem.services[0], requests_s=1e6),))
    first = replan(asked, effort, Current(()))
    assert not first.plan.feasible
    again = replan(asked, effort, running(first.plan))
    assert (again.kept, again.steps) == (True, ())
    assert 0 <= again.plan.bound <= again.plan.value
    fewer = running(first.plan).instances[:-1]
    assert not replan(asked, effort, Current(fewer)).kept
