"""What a member holds follows the tables, in two phases, and never lets go of what is under way."""

from __future__ import annotations

import pytest

from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout
from katsura.domain.tables import Assignment, ExpertTable, ExpertTables
from katsura.experts.core.residency import Key, LastFrame, Residency, decide, is_placed, keys_of, may_free, ranges_of

ME, LIFE = InstanceId("m0"), Incarnation(7)
NONE: frozenset[Key] = frozenset()


def table(epoch: int, groups: tuple[int, ...], alternate: tuple[int, ...] = (), life: int = LIFE) -> ExpertTable:
    ranges = [(GroupRange(0, 2, each),) if each else () for each in (groups, alternate)]
    mine = Assignment(ME, Incarnation(life), 0, ("shm:/x",), "f", *ranges)
    return ExpertTable(DeploymentName("d"), "r", Epoch(epoch), 2, FfnLayout(4, 4), (mine,))


def tables(committed: ExpertTable | None = None, prepared: ExpertTable | None = None) -> ExpertTables:
    return ExpertTables(DeploymentName("d"), "r", committed, prepared)


def held(*groups: int) -> frozenset[Key]:
    return frozenset((layer, group) for layer in (0, 1) for group in groups)


def decided(t: ExpertTables, loaded: frozenset[Key], asked: frozenset[Key] = NONE, room: int = 8) -> Residency:
    return decide(t, ME, LIFE, loaded, asked, room)


def test_without_a_table_nothing_is_held() -> None:
    assert decided(tables(), NONE) == Residency((), (), Epoch(0), Epoch(0))


def test_a_prepared_table_is_loaded_and_acknowledged_only_when_all_of_it_is_there() -> None:
    t = tables(prepared=table(3, (0,), alternate=(1,)))
    assert decided(t, NONE) == Residency(((0, 0), (0, 1), (1, 0), (1, 1)), (), Epoch(0), Epoch(0))
    assert decided(t, held(0)).prepared_epoch == 0
    assert decided(t, held(0, 1)) == Residency((), (), Epoch(3), Epoch(0))


def test_the_committed_table_is_served_while_the_next_one_is_loaded_and_nothing_of_either_is_freed() -> None:
    t = tables(table(3, (0,)), table(4, (1,)))
    assert decided(t, held(0)) == Residency(((0, 1), (1, 1)), (), Epoch(3), Epoch(3))
    assert decided(t, held(0, 1)) == Residency((), (), Epoch(4), Epoch(3))


def test_a_table_that_does_not_fit_beside_the_one_in_force_takes_its_place() -> None:
    t = tables(table(3, (0,), alternate=(1,)), table(4, (0,), alternate=(2,)))
    assert decided(t, held(0, 1), room=6) == Residency(((0, 2), (1, 2)), (), Epoch(3), Epoch(3))
    assert decided(t, held(0, 1), room=4) == Residency(((0, 2), (1, 2)), ((0, 1), (1, 1)), Epoch(3), Epoch(3))
    assert decided(t, held(0), room=4).serving_epoch == 0
    assert decided(t, held(0, 2), room=4).prepared_epoch == 4


def test_what_no_table_names_is_freed_after_the_commit() -> None:
    assert decided(tables(table(4, (1,))), held(0, 1)).free == ((0, 0), (1, 0))


def test_what_the_committed_table_lacks_comes_first() -> None:
    assert decided(tables(table(3, (2,)), table(4, (0,))), NONE).load[:2] == ((0, 2), (1, 2))


def test_a_table_made_for_an_earlier_life_means_nothing_to_this_one() -> None:
    assert decided(tables(table(3, (0,), life=6)), NONE) == Residency((), (), Epoch(3), Epoch(3))


def test_what_was_asked_for_stays_until_it_is_given_up() -> None:
    t = tables(table(3, (0,)))
    assert decided(t, held(0), asked=held(2)).load == ((0, 2), (1, 2))
    assert decided(t, held(0, 2), asked=held(2)).free == ()
    assert decided(t, held(0, 2)).free == ((0, 2), (1, 2))


@pytest.mark.parametrize(
    ("keys", "ranges"),
    [
        (held(0, 2), (GroupRange(0, 2, (0, 2)),)),
        (frozenset({(0, 1), (1, 1), (1, 2)}), (GroupRange(0, 1, (1,)), GroupRange(1, 2, (1, 2)))),
        (frozenset({(0, 1), (2, 1)}), (GroupRange(0, 1, (1,)), GroupRange(2, 3, (1,)))),
        (NONE, ()),
    ],
)
def test_ranges_are_the_fewest_and_mean_the_same(keys: frozenset[Key], ranges: tuple[GroupRange, ...]) -> None:
    assert ranges_of(keys) == ranges
    assert keys_of(ranges) == keys


@pytest.mark.parametrize(
    ("clients", "free"),
    [
        ({}, True),
        ({1: LastFrame(4, 9.9)}, True),
        ({1: LastFrame(3, 9.9)}, False),
        ({1: LastFrame(3, 7.9)}, True),
        ({1: LastFrame(4, 9.9), 2: LastFrame(3, 9.9)}, False),
    ],
)
def test_groups_are_freed_when_no_client_can_still_mean_the_old_table(
    clients: dict[int, LastFrame], free: bool
) -> None:
    assert may_free(clients, Epoch(4), now_s=10.0) is free


@pytest.mark.parametrize(
    ("t", "loaded", "only", "placed"),
    [
        (tables(), NONE, "f", False),
        (tables(prepared=table(3, (0,))), held(0), "f", False),
        (tables(committed=table(3, (0,), (1,))), held(0), "f", False),
        (tables(committed=table(3, (0,), (1,))), held(0, 1), "f", True),
        (tables(committed=table(3, (0,)), prepared=table(4, (0, 1))), held(0), "f", True),
        (tables(committed=table(3, (0,), life=6)), held(0), "f", False),
        (tables(committed=table(3, (0,), life=6)), NONE, "other", True),
        (tables(committed=table(3, (0,), life=6)), NONE, "", False),
    ],
    ids=["no table", "only prepared", "half loaded", "whole", "while the next loads", "a former life's", "other bits",
         "any bits"],
)  # fmt: skip
def test_a_member_is_counted_on_once_the_table_in_force_does(
    t: ExpertTables, loaded: frozenset[Key], only: str, placed: bool
) -> None:
    assert is_placed(t, ME, LIFE, only, loaded) is placed
