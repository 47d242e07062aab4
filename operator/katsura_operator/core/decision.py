"""A whole decision: from what is seen to what is to be written. Pure, and all of a pass that takes long.

    seen -> placing.read -> placing.place (the planner, where its inputs changed) -> desire -> what of it is missing

`solver` has it made in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from katsura.domain.errors import UnavailableError
from katsura.manifests import decision as planner
from katsura.manifests.decision import Decision, Situation
from katsura.placement.calibration import Calibration
from katsura.placement.patterns import Memo
from katsura.placement.problem import Effort
from katsura_operator.core import affinity
from katsura_operator.core.desire import Desired, desire
from katsura_operator.core.difference import is_current, stamped
from katsura_operator.core.knowledge import known
from katsura_operator.core.objects import (
    MODEL_DEPLOYMENT,
    NODE,
    Object,
    is_ending,
    kind_of,
    labels_of,
    name_of,
    namespace_of,
)
from katsura_operator.core.placing import Placement, Reading, classes_of, place, read
from katsura_operator.core.poison import Known
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.core.status import failed_status, is_reported

_EFFORT: Final = Effort(gap=0.01, seconds=10.0)


def decide(
    seen: Snapshot,
    settings: Settings,
    trouble: str = "",
    solve: Callable[[Situation], Decision] | None = None,
    memo: Memo | None = None,
    poison: Known | None = None,
) -> Desired:
    """What is to be written.

    Args:
        trouble: why nothing can be solved now: where that is not needed it changes nothing.
        solve: the planner, which may take seconds; memo: what ours knows from the decisions before.
        poison: what it is known to fail on; grows.
    """

    def in_trouble(_: Situation) -> Decision:
        raise UnavailableError(trouble)

    reading = read(seen)
    solve = in_trouble if trouble else solve or partial(_solve, known(seen, settings), memo)
    placement = place(reading, seen, settings, solve, poison)
    wanted = desire(seen, reading, placement, settings, _affinities(reading, placement, seen, settings))
    return outstanding(wanted, seen)


def _solve(measured: Calibration, memo: Memo | None, situation: Situation) -> Decision:
    return planner.decide(situation, _EFFORT, known=measured, memo=memo)


def _affinities(
    reading: Reading, placement: Placement, seen: Snapshot, settings: Settings
) -> Mapping[str, affinity.Expressions]:
    selectors = {p.metadata.name: p.spec.node_selector for p in reading.profiles}
    if settings.nodes_observed:
        nodes = {name_of(n): labels_of(n) for n in seen.of(NODE)}
        return affinity.expressions(placement.classes, nodes, selectors.values())
    return {c.name: affinity.selected(selectors.get(classes_of(c, selectors), {})) for c in placement.classes}


def excuse(seen: Snapshot, why: str) -> Desired:
    """Nothing but why nothing is decided, beside what every ModelDeployment says already."""
    made = Desired()
    for obj in seen.of(MODEL_DEPLOYMENT):
        made.statuses.append((obj, failed_status(obj, why, seen.now)))
    return outstanding(made, seen)


def outstanding(desired: Desired, seen: Snapshot) -> Desired:
    """`desired` without what stands already; what is kept carries its stamp."""

    def found(obj: Object) -> Object | None:
        return seen.get(kind_of(obj), namespace_of(obj), name_of(obj))

    desired.keep = [body for body in map(stamped, desired.keep) if not is_current(found(body), body)]
    desired.delete = [obj for obj in desired.delete if not is_ending(obj)]
    desired.statuses = [(obj, body) for obj, body in desired.statuses if not is_reported(obj, body)]
    return desired
