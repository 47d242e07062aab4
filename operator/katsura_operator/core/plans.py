"""Stored PlacementPlans: which are ours, in which order, and what of them can be believed.

Plans outlive the version that wrote them, and anybody may copy or edit one. A plan that cannot be read whole is never
in force; of what only tells people something, entries that cannot be read are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.document import current_of
from katsura_operator.core.objects import PLAN, Object, name_of, number
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

_NAME: Final = re.compile(r"plan-(\d{1,12})")
_CORES_MAX, _DEVICES_MAX, _BYTES_MAX = 1e6, 1e6, 2.0**60


def plans(snapshot: Snapshot, settings: Settings) -> list[Object]:
    """Plans with names of ours, oldest first: their names count up."""
    return sorted((p for p in snapshot.of(PLAN, settings.namespace) if _number_of(p) is not None), key=_order)


def next_name(stored: Sequence[Object]) -> str:
    """The name after those of `stored` (of `plans`)."""
    return f"plan-{(_number_of(stored[-1]) or 0) + 1 if stored else 1:06d}"


def is_whole(plan: Object) -> bool:
    """Whether its assignments can be followed."""
    try:
        instances = current_of(plan).instances
    except (InvalidArgumentError, AttributeError, OverflowError):
        return False
    for entry in plan["status"]["assignments"]:
        if not (isinstance(entry["pattern"], str) and isinstance(entry["service"], str)):
            return False
    places = (p for i in instances for p in i.places)
    return all(
        0 <= p.cores <= _CORES_MAX and 0 <= p.accelerators <= _DEVICES_MAX and 0 <= p.ram_bytes <= _BYTES_MAX
        for p in places
    )


def listed(plan: Object, field: str, *keys: str) -> list[Mapping[str, Any]]:
    """Entries of a list of its status that say all of `keys`."""
    found = (plan.get("status") or {}).get(field)
    every = found if isinstance(found, list | tuple) else ()
    return [e for e in every if isinstance(e, Mapping) and all(e.get(key) is not None for key in keys)]


def bounded(value: Any, highest: float) -> float | None:
    """A number from 0 to `highest`; None for everything else."""
    found = number(value)
    return found if found is not None and 0 <= found <= highest else None


def _number_of(plan: Object) -> int | None:
    found = _NAME.fullmatch(name_of(plan))
    return None if found is None else int(found[1])


def _order(plan: Object) -> tuple[int, str]:
    return _number_of(plan) or 0, name_of(plan)
