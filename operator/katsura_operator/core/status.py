"""Conditions, and the events of their transitions.

A status is written only where it differs from the one that stands; `lastTransitionTime` moves only when `status` does.
An event has a name made of what happened, so that writing it twice after a crash writes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from katsura.manifests.conditions import ConditionType, EventReason, Why
from katsura_operator.core.objects import (
    EVENT,
    MANAGER,
    Object,
    condition_of,
    digest,
    name_of,
    namespace_of,
)

_MESSAGE_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class Said:
    """One condition of today."""

    type: ConditionType
    holds: bool
    why: Why
    message: str = ""


def conditions(obj: Object, said: Sequence[Said], now: str) -> list[dict[str, Any]]:
    """`said` as conditions of `obj`, which keeps the time of those that did not change."""
    made = []
    for entry in said:
        old = condition_of(obj, entry.type)
        status = "True" if entry.holds else "False"
        made.append(
            {
                "type": entry.type.value,
                "status": status,
                "reason": entry.why.value,
                "message": entry.message[:_MESSAGE_MAX],
                "observedGeneration": obj["metadata"].get("generation", 1),
                "lastTransitionTime": (old.get("status") == status and old.get("lastTransitionTime")) or now,
            }
        )
    return made


def status_of(obj: Object, body: Mapping[str, Any], said: Sequence[Said], now: str) -> dict[str, Any]:
    """The object to apply to the status subresource."""
    generation = obj["metadata"].get("generation", 1)
    status = {"observedGeneration": generation, **body, "conditions": conditions(obj, said, now)}
    metadata = {k: obj["metadata"][k] for k in ("name", "namespace", "uid") if k in obj["metadata"]}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata, "status": status}


def failed_status(obj: Object, why: str, now: str) -> dict[str, Any]:
    """The status of `obj` as it stands, but that nothing could be decided of it."""
    old = obj.get("status") or {}
    (failed,) = conditions(obj, [Said(ConditionType.PLANNED, False, Why.PLANNER_FAILED, why)], now)
    kept = [c for c in old.get("conditions") or () if c.get("type") != failed["type"]]
    metadata = {k: obj["metadata"][k] for k in ("name", "namespace", "uid") if k in obj["metadata"]}
    status = {**old, "conditions": [*kept, failed]}
    return {"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata, "status": status}


def is_reported(obj: Object, wanted: Mapping[str, Any]) -> bool:
    """Whether the status that stands says the same, fields that are not said any more included.

    The API server fills in the defaults of counts and texts that are not said: they say nothing.
    """
    return bool(_plain(obj.get("status") or {}) == _plain(wanted["status"]))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: p for k, v in value.items() if (p := _plain(v)) not in (None, "", 0, [], {})}
    if isinstance(value, list | tuple):
        items = [_plain(v) for v in value]
        return sorted(items, key=lambda v: str(v.get("type", v.get("name")))) if _is_map(items) else items
    return value


def _is_map(items: list[Any]) -> bool:
    return all(isinstance(v, Mapping) and ("type" in v or "name" in v) for v in items)


_TOLD: Final[Mapping[tuple[ConditionType, bool], EventReason]] = {
    (ConditionType.READY, True): EventReason.BECAME_READY,
    (ConditionType.READY, False): EventReason.BECAME_UNREADY,
    (ConditionType.DEGRADED, True): EventReason.DEGRADED,
    (ConditionType.DEGRADED, False): EventReason.RECOVERED,
    (ConditionType.ACCEPTED, False): EventReason.REFUSED,
    (ConditionType.PLANNED, False): EventReason.PLAN_INFEASIBLE,
    (ConditionType.PLANNED, True): EventReason.PLAN_MADE,
}
_BAD: Final = frozenset(
    (
        *(EventReason.BECAME_UNREADY, EventReason.DEGRADED, EventReason.REFUSED),
        *(EventReason.PLAN_INFEASIBLE, EventReason.PURGE_BLOCKED),
    )
)


def transitions(obj: Object, said: Sequence[Said], now: str) -> list[dict[str, Any]]:
    """Events of conditions that change between `obj` and `said`. A first No is no transition, except a refusal."""
    made = []
    for entry in said:
        old = condition_of(obj, entry.type).get("status")
        reason = _TOLD.get((entry.type, entry.holds))
        silent = entry.type in (ConditionType.READY, ConditionType.DEGRADED) and not entry.holds
        if reason is None or old == ("True" if entry.holds else "False") or (old is None and silent):
            continue
        made.append(event(obj, reason, entry.message or entry.why.value, now, mark=str(condition_of(obj, entry.type))))
    return made


def event(obj: Object, reason: EventReason, note: str, now: str, mark: str) -> dict[str, Any]:
    """An event about `obj`. `mark` tells occurrences apart: equal marks are one event."""
    name = f"{name_of(obj)[:180]}.{digest(obj['metadata']['uid'], reason.value, mark, length=16)}"
    fields = ("name", "namespace", "uid", "resourceVersion")
    regarding = {k: obj["metadata"][k] for k in fields if k in obj["metadata"]}
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"name": name, "namespace": namespace_of(obj) or "default"},
        "eventTime": now.replace("Z", ".000000Z"),
        "reportingController": MANAGER,
        "reportingInstance": MANAGER,
        "action": reason.value,
        "reason": reason.value,
        "type": "Warning" if reason in _BAD else "Normal",
        "note": note.encode()[:_MESSAGE_MAX].decode(errors="ignore"),
        "regarding": {"apiVersion": obj["apiVersion"], "kind": obj["kind"], **regarding},
    }
