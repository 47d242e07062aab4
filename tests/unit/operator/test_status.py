from __future__ import annotations

from typing import Any

from katsura.manifests.conditions import ConditionType, Why
from katsura_operator.core.status import Said, conditions, is_reported, status_of, transitions

OLD, NEW = "2026-11-21T12:00:00Z", "2026-11-21T13:00:00Z"
READY = Said(ConditionType.READY, True, Why.ALL_ROLES_READY)
UNREADY = Said(ConditionType.READY, False, Why.PODS_NOT_READY, "0/1")


def thing(*said: Said, generation: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = {"apiVersion": "katsura.dev/v1alpha1", "kind": "RolePool"}
    made["metadata"] = {"name": "a", "namespace": "n", "uid": "u", "generation": generation, "resourceVersion": "1"}
    return made | ({"status": status_of(made, {}, said, OLD)["status"]} if said else {})


def test_the_time_moves_only_when_the_status_does() -> None:
    assert conditions(thing(READY), [READY], NEW)[0]["lastTransitionTime"] == OLD
    assert conditions(thing(READY), [UNREADY], NEW)[0]["lastTransitionTime"] == NEW
    other = Said(ConditionType.READY, True, Why.IDLE)
    assert conditions(thing(READY), [other], NEW)[0]["lastTransitionTime"] == OLD


def test_a_status_that_says_the_same_is_not_written_again() -> None:
    assert is_reported(thing(READY), status_of(thing(READY), {}, [READY], NEW))
    assert not is_reported(thing(READY), status_of(thing(READY), {}, [UNREADY], NEW))
    assert not is_reported(thing(READY), status_of(thing(READY), {"replicas": 1}, [READY], NEW))
    assert not is_reported(thing(READY), status_of(thing(READY, generation=2) | {}, {}, [READY], NEW))


def test_counts_that_the_api_server_fills_in_are_no_news() -> None:
    filled = thing(READY)
    filled["status"] |= {"replicas": 0, "readyReplicas": 0, "endpoint": ""}
    assert is_reported(filled, status_of(thing(READY), {}, [READY], NEW))
    filled["status"] |= {"replicas": 1}
    assert not is_reported(filled, status_of(thing(READY), {}, [READY], NEW))


def test_events_come_with_transitions_and_a_crash_does_not_double_them() -> None:
    assert [e["reason"] for e in transitions(thing(UNREADY), [READY], NEW)] == ["BecameReady"]
    assert transitions(thing(READY), [READY], NEW) == []
    again = [transitions(thing(READY), [UNREADY], now)[0]["metadata"]["name"] for now in (OLD, NEW)]
    assert again[0] == again[1]


def test_a_first_no_is_no_transition() -> None:
    assert transitions(thing(), [UNREADY], NEW) == []
    assert transitions(thing(), [READY], NEW)
