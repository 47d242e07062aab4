"""Names and filters of the LangGraph store."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.adapters.store import matches, name_of, place_of
from katsura.domain.errors import InvalidArgumentError

part = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(deadline=None, derandomize=True)
@given(st.lists(part, max_size=4).map(tuple), part)
def test_a_name_says_its_namespace_and_key_whatever_they_hold(namespace: tuple[str, ...], key: str) -> None:
    assert place_of(name_of(namespace, key)) == (namespace, key)


def test_names_of_a_namespace_begin_with_its_folder_and_no_others_do() -> None:
    assert name_of(("a", "b/c"), "k").startswith("langgraph/a/b%2Fc/")
    assert not name_of(("ab",), "k").startswith("langgraph/a/")


@pytest.mark.parametrize(
    ("value", "wanted", "holds"),
    [
        (3, 3, True),
        ({"x": 1}, {"x": 1}, True),
        (3, {"$gt": 2, "$lte": 3}, True),
        (3, {"$lt": 3}, False),
        ("b", {"$gte": "a"}, True),
        (None, {"$gt": 1}, False),
        ("1", {"$gt": 0}, False),
        (None, {"$ne": 1}, True),
        (None, {"$eq": None}, True),
    ],
)
def test_filters_compare_as_langgraph_says(value: Any, wanted: Any, holds: bool) -> None:
    assert matches(value, wanted) is holds


def test_an_unknown_operator_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"\$in"):
        matches(1, {"$in": [1]})
