from __future__ import annotations

from typing import Any

import pytest

from katsura_operator.core.difference import contains, is_current, stamped

WANTED: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"x": "1"}},
    "spec": {"replicas": 2, "memory": "1024Mi", "args": ["--a"], "env": []},
}


def seen(**changes: Any) -> dict[str, Any]:
    made = stamped(WANTED)
    return {**made, "spec": {**made["spec"], **changes}}


def test_what_the_api_server_adds_or_writes_differently_is_no_difference() -> None:
    stored = seen(memory="1Gi", extra="default")
    del stored["spec"]["env"]
    assert is_current(stored, stamped(WANTED))


@pytest.mark.parametrize("change", [{"replicas": 3}, {"args": ["--b"]}, {"args": ["--a", "--b"]}, {"memory": "2Gi"}])
def test_an_edit_is_a_difference(change: dict[str, Any]) -> None:
    assert not is_current(seen(**change), stamped(WANTED))


def test_a_field_that_is_not_wanted_any_more_is_a_difference() -> None:
    less = {**WANTED, "spec": {"replicas": 2}}
    assert contains(seen(), less)
    assert not is_current(seen(), stamped(less))


def test_nothing_is_not_something() -> None:
    assert not is_current(None, stamped(WANTED))


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [("500m", "0.5", True), ("1Ki", 1024, True), ("1", "1000m", True), ("1M", "1Mi", False), ("true", True, False)],
)
def test_quantities_are_compared_by_value(a: Any, b: Any, same: bool) -> None:
    assert contains(a, b) is same


@pytest.mark.parametrize(
    ("wanted", "stored"), [("0.0001", "100u"), ("0.000000001", "1n"), ("1024Ti", "1Pi"), ("1000P", "1E")]
)
def test_every_suffix_of_quantities_is_known(wanted: str, stored: str) -> None:
    assert contains({"cpu": stored}, {"cpu": wanted})
    assert not contains({"cpu": stored}, {"cpu": "7"})
