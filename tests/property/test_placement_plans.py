"""What holds for every plan, on small made-up clusters by seed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.placement.document import Current, Running, running
from katsura.placement.patterns import enumerate_patterns
from katsura.placement.planner import plan
from katsura.placement.problem import Effort, Objective, Problem
from katsura.placement.replan import Policy, Replan, Step, replan
from katsura.testing.clusters import cards, model_service, node_class, problem_of

EXACT = Effort(gap=0.0, seconds=None, nodes=2000)
SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
CARDS = cards()


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    kinds = draw(st.lists(st.sampled_from(["A100-80", "H100", "L4", "L40S"]), min_size=1, max_size=2, unique=True))
    classes = []
    for kind in kinds:
        for domain in draw(st.sampled_from([("a",), ("a", "b")])):
            per_node = draw(st.sampled_from([2, 4]))
            spot = draw(st.booleans()) if domain == "b" else False
            count = draw(st.integers(1, 5))
            classes.append(node_class(kind, count, per_node=per_node, domain=domain, spot=spot))
    services = [
        model_service(
            f"s{i}",
            CARDS[draw(st.sampled_from([0, 0, 3]))],
            draw(st.sampled_from([0.0, 2.0, 12.0, 40.0])),
            itl_ms=draw(st.sampled_from([30.0, 80.0])),
            domains_min=draw(st.sampled_from([1, 1, 2])),
            spot_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
        )
        for i in range(draw(st.integers(1, 2)))
    ]
    return problem_of(services, classes)


def check_inventory(problem: Problem, current: Current) -> None:
    used: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for instance in current.instances:
        for p in instance.places:
            for k, amount in enumerate((p.accelerators, p.cores, p.ram_bytes)):
                used[p.node][k] += amount
    have = {n: (c.accelerators, c.cores, c.ram_bytes) for c in problem.classes for n in c.nodes}
    for node, taken in used.items():
        assert all(t <= h * (1 + 1e-6) + 1e-6 for t, h in zip(taken, have[node], strict=True)), node


@SETTINGS
@given(problems())
def test_a_plan_fits_its_inventory_and_serves_all_or_says_what_would(problem: Problem) -> None:
    made = plan(problem, EXACT)
    check_inventory(problem, running(made))
    for service, summary in zip(problem.services, made.services, strict=True):
        mine = [i.column for i in made.instances if i.column.service == service.name]
        spot = sum(c.requests_s for c in mine if c.spot)
        assert spot <= service.spot_share * summary.capacity + 1e-6
        if made.feasible:
            assert summary.capacity >= service.requests_s * (1 - 1e-6)
            assert len({c.domain for c in mine}) >= service.domains_min
    assert made.feasible or made.binding or made.relaxations or made.refused
    assert made.bound <= made.value * (1 + 1e-6) + 1e-6


@SETTINGS
@given(problems(), st.integers(0, 3))
def test_more_supply_never_costs_more_and_dearer_nodes_never_less(problem: Problem, which: int) -> None:
    first = plan(problem, EXACT, explain=False)
    if not first.feasible:
        return
    c = problem.classes[which % len(problem.classes)]
    more = replace(c, nodes=(*c.nodes, "one-more"))
    dearer = replace(c, hourly_usd=c.hourly_usd * 1.5)
    for new, sign in ((more, -1), (dearer, 1)):
        changed = replace(problem, classes=tuple(new if k is c else k for k in problem.classes))
        second = plan(changed, EXACT, explain=False)
        slack = (first.gap + second.gap) * first.value + 1e-6
        assert sign * (second.value - first.value) >= -slack


def carried_out(problem: Problem, current: Current, change: Replan) -> None:
    """Take the steps one by one: every moment fits the nodes, and no stop takes demand that could be kept."""
    rates = {c.key: c.requests_s for c in enumerate_patterns(problem).columns(problem.classes)}
    demand = {s.name: s.requests_s for s in problem.services}
    standing = list(current.instances)
    for number, step in enumerate(change.steps):
        instance = Running(step.key, step.service, step.places)
        starts = [s for s in change.steps[number + 1 :] if s.action == "start"]
        if step.action == "start":
            standing.append(instance)
        else:
            # A stop before a start only where no start that is left has room beside what stands.
            assert not any(fits(problem, standing, Running(s.key, s.service, s.places)) for s in starts)
            stops = [instance, *(r for s in change.steps[number + 1 :] if (r := stopped(s)) is not None)]
            left = {
                i.key: served(rates, standing, i.service) - rates.get(i.key, 0.0) - demand[i.service] for i in stops
            }
            assert not starts or left[instance.key] >= max(left.values()) - 1e-9
            assert step.breaks == (bool(starts) and left[instance.key] < -1e-9)
            standing.remove(instance)
        check_inventory(problem, Current(tuple(standing)))
    assert sorted(i.key for i in standing) == sorted(i.column.key for i in change.plan.instances)


def stopped(step: Step) -> Running | None:
    return Running(step.key, step.service, step.places) if step.action == "stop" else None


def served(rates: dict[str, float], standing: list[Running], service: str) -> float:
    return sum(rates.get(i.key, 0.0) for i in standing if i.service == service)


def fits(problem: Problem, standing: list[Running], instance: Running) -> bool:
    try:
        check_inventory(problem, Current((*standing, instance)))
    except AssertionError:
        return False
    return True


@SETTINGS
@given(problems(), st.sampled_from([0.3, 0.8, 1.3, 2.5]))
def test_the_order_of_a_change_can_be_carried_out(problem: Problem, factor: float) -> None:
    before = running(plan(problem, EXACT, explain=False))
    services = tuple(replace(s, requests_s=s.requests_s * factor) for s in problem.services)
    changed = replace(problem, services=services)
    change = replan(changed, EXACT, before)
    if not change.kept:
        carried_out(changed, before, change)


@SETTINGS
@given(problems(), st.floats(0.9, 1.1))
def test_nothing_flips_for_less_than_the_hysteresis(problem: Problem, factor: float) -> None:
    first = plan(problem, EXACT, explain=False)
    if not first.feasible:
        return
    classes = tuple(
        replace(c, hourly_usd=c.hourly_usd * (factor if i == 0 else 1.0)) for i, c in enumerate(problem.classes)
    )
    policy = Policy(hysteresis=0.12)
    change = replan(replace(problem, classes=classes, objective=Objective.COST), EXACT, running(first), policy)
    assert change.kept or change.saving_usd > 0.12 * (change.plan.hourly_usd + change.saving_usd)
