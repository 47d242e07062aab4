"""Stored plans outlive the version that wrote them, and people copy and edit them."""

from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.objects import PLAN
from katsura_operator.core.plans import bounded, is_whole, listed, next_name, plans
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot

SETTINGS = Settings("n", "s", "e")
PLACE = {"role": "unified", "nodeClass": "c", "node": "a", "accelerators": 0, "cores": 2.0, "memoryBytes": 1}


def plan(name: str, **place: Any) -> dict[str, Any]:
    entry = {"pattern": "p", "service": "n/chat", "instances": [{"places": [{**PLACE, **place}]}]}
    status: dict[str, Any] = {"assignments": [entry], "services": [{"name": "n/chat"}, {}, None]}
    return {"kind": PLAN.name, "metadata": {"name": name, "namespace": "n"}, "status": status}


def test_names_count_up_beyond_six_digits_and_those_of_others_are_not_ours() -> None:
    names = ("plan-1000000", "mine", "plan-latest", "plan-999999", "plan-", "plan-000002")
    seen = Snapshot({PLAN.name: tuple(map(plan, names))}, "")
    stored = plans(seen, SETTINGS)
    assert [p["metadata"]["name"] for p in stored] == ["plan-000002", "plan-999999", "plan-1000000"]
    assert next_name(stored) == "plan-1000001"
    assert next_name([]) == "plan-000001"


def test_only_a_plan_whose_places_can_be_read_is_whole() -> None:
    assert is_whole(plan("plan-000001"))
    for status in (
        {},
        None,
        {"assignments": None},
        {"assignments": [{"pattern": None, "service": "s", "instances": []}]},
    ):
        assert not is_whole({**plan("plan-000001"), "status": status})
    for place in ({"cores": None}, {"cores": -1}, {"cores": 1e300}, {"memoryBytes": "much"}, {"accelerators": 10**12}):
        assert not is_whole(plan("plan-000001", **place)), place


def test_entries_that_do_not_say_what_is_asked_are_passed_over() -> None:
    assert listed(plan("plan-000001"), "services", "name") == [{"name": "n/chat"}]
    assert listed({"status": {"services": None}}, "services") == listed({}, "services") == []


@pytest.mark.parametrize("value", [None, "1", True, -1, 11, float("nan"), float("inf")])
def test_what_is_no_number_within_bounds_is_none(value: Any) -> None:
    assert bounded(value, 10) is None
    assert bounded(10, 10) == 10.0
