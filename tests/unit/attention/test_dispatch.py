"""Who gets which groups is a table in, a table out."""

from __future__ import annotations

import pytest

from katsura.attention.core.dispatch import SUSPECT_S, Holders, Sending, suspicion_s
from katsura.domain.cost import FrameCost
from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout
from katsura.domain.tables import Assignment, ExpertTable


def member(rank: int, primary: tuple[int, ...], alternate: tuple[int, ...] = (), print_: str = "f") -> Assignment:
    def over(groups: tuple[int, ...]) -> tuple[GroupRange, ...]:
        return (GroupRange(0, 2, groups),) if groups else ()

    return Assignment(InstanceId(f"m{rank}"), Incarnation(1), rank, (), print_, over(primary), over(alternate))


def holders(*members: Assignment) -> Holders:
    return Holders(ExpertTable(DeploymentName("d"), "r", Epoch(1), 2, FfnLayout(4, 4), members), "f")


def test_groups_go_to_their_primaries() -> None:
    found = holders(member(0, (0, 2), (1, 3)), member(1, (1, 3), (0, 2)))
    assert found.send(1, range(4), {0, 1}) == Sending({0: (0, 2), 1: (1, 3)}, ())


def test_an_alternate_serves_while_its_primary_cannot() -> None:
    found = holders(member(0, (0, 2), (1, 3)), member(1, (1, 3), (0, 2)))
    assert found.send(0, range(4), {0}) == Sending({0: (0, 1, 2, 3)}, ())
    assert not found.is_primary(0, 1, 0)
    assert found.is_primary(0, 0, 0)


def test_alternates_are_tried_by_rank() -> None:
    found = holders(member(0, (0, 1, 2, 3)), member(1, (), (0,)), member(2, (), (0,)))
    assert found.send(0, [0], {1, 2}) == Sending({1: (0,)}, ())


def test_a_group_without_a_copy_is_named() -> None:
    found = holders(member(0, (0, 1)), member(1, (2, 3)))
    assert found.send(0, range(4), {1}) == Sending({1: (2, 3)}, (0, 1))
    assert found.orphans({1}) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found.orphans({0, 1}) == []


def test_a_member_that_computes_other_bits_is_never_used() -> None:
    found = holders(member(0, (0, 1, 2, 3)), member(1, (), (0, 1, 2, 3), print_="other"))
    assert found.send(0, range(4), {1}) == Sending({}, (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("units", "token_units", "queue_s", "strikes", "expected"),
    [
        (1, 1, 0.0, 0, SUSPECT_S),
        (10, 100, 0.0, 0, 8 * 0.2),
        (10, 100, 0.1, 0, 8 * 0.3),
        (1, 1, 0.0, 2, 4 * SUSPECT_S),
        (10, 100, 0.1, 8, 10.0),
    ],
)
def test_suspicion_grows_with_the_predicted_time_and_with_strikes(
    units: int, token_units: int, queue_s: float, strikes: int, expected: float
) -> None:
    found = suspicion_s(FrameCost(0.01, 0.001), units, token_units, queue_s, strikes, most_s=10.0)
    assert found == pytest.approx(expected)
