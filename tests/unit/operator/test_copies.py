"""Who can stand in for whom."""

from __future__ import annotations

from katsura_operator.core.copies import Member, odd_ones


def test_members_are_odd_within_their_pool_and_those_not_asked_yet_are_not() -> None:
    some = [Member(f"u{n}", "", pool) for n, pool in enumerate("aaabb")]
    assert odd_ones(some, {}) == ()
    assert odd_ones(some, {"u0": "x", "u1": "y", "u2": "y", "u3": "x", "u4": "x"}) == ("u0",)
    assert odd_ones(some, {"u0": "x", "u3": "x", "u4": "y"}) == ("u4",)
