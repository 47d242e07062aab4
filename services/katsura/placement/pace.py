"""What a decode step of an instance should take by the cost model: the operator holds beside it what it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256

from katsura.placement.cost import Load, decode_terms
from katsura.placement.patterns import Unit, layout_of, pool_of, units_of
from katsura.placement.plan import Place
from katsura.placement.problem import ModelService, NodeClass, Problem
from katsura.placement.split import Steps


def predicted_step_s(
    problem: Problem, service: ModelService, places: Sequence[Place], micro: int, batch: float, context: float
) -> float | None:
    """Seconds of one decode step by the coefficients of the devices, what running replicas showed left out.

    Args:
        places: of one instance. micro: micro-batches of a split. batch: sequences of one leading process (each of a
            split's shards is taken to have as many). context: tokens that a sequence sees, on average.

    Returns:
        None where the places are of no engine that runs, or of no class of the problem.
    """
    by_role: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        by_role[place.role].append(place)
    classes = {c.name: c for c in problem.classes}
    units = {role: unit for role, found in by_role.items() if (unit := unit_of(found[0], classes)) is not None}
    load = Load(max(1, round(context) - 1), 2)
    if units.keys() == by_role.keys() == {"unified"}:
        unit = units["unified"]
        terms = decode_terms(service.card, unit.device, service.precision, layout_of(unit), batch, load)
        return problem.calibration.of(unit.device).step_s(terms.decoding)
    if units.keys() == by_role.keys() == {"attention", "experts"}:
        shards, members = len(by_role["attention"]), len(by_role["experts"])
        pool = pool_of(problem, units["attention"], units["experts"], shards, members, service.units)
        whole = batch * shards
        return Steps(service.card, service.precision, pool, load).step_s(whole, max(1, min(micro, int(whole))))
    return None


def unit_of(place: Place, classes: Mapping[str, NodeClass]) -> Unit | None:
    """The slice of a node that a process of a plan takes; None where the class is gone or has no such slices."""
    if place.node_class not in classes:
        return None
    count = place.accelerators or int(place.cores)
    return next((u for u in units_of(classes[place.node_class]) if u.count == count), None)


def basis_of(problem: Problem, service: ModelService, devices: Sequence[str]) -> str:
    """A digest of what predictions rest on: a ratio to other predictions says nothing."""
    known = {d.name: d for c in problem.classes for d in (c.device, c.core) if d is not None}
    rates = [(known[name], problem.calibration.of(known[name])) for name in devices if name in known]
    return sha256(repr((rates, service.card, service.precision)).encode()).hexdigest()[:12]
