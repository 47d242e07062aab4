"""Names from outside cannot forge keys."""

from __future__ import annotations

from katsura.state.keys import quoted


def test_separators_and_braces_are_encoded() -> None:
    assert quoted("a/b{c}:d e%") == "a%2Fb%7Bc%7D%3Ad%20e%25"
