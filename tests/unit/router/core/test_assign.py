from dataclasses import replace

import pytest

from katsura.domain.ids import Epoch
from katsura.domain.leases import GroupRange, MemberLease
from katsura.domain.shape import FfnLayout, Numerics
from katsura.domain.tables import ExpertTable
from katsura.router.core.assign import Layout, assign, table_of
from katsura.testing.fleet import DEPLOYMENT, GROUP_BYTES, GROUPS, LAYERS, member_record


def member(name: str, order: int = 0, room: int = GROUPS, loaded: str = "", **change: object) -> MemberLease:
    held = tuple(int(digit) for digit in loaded)
    return replace(
        member_record(name, start_ms=order),
        capacity_bytes=room * LAYERS * GROUP_BYTES,
        loaded=(GroupRange(0, LAYERS, held),) if held else (),
        **change,  # type: ignore[arg-type]
    )


def fleet(*names: str, **change: object) -> list[MemberLease]:
    return [member(name, order, **change) for order, name in enumerate(names)]  # type: ignore[arg-type]


def shown(layout: Layout | None) -> tuple[str, str]:
    """Primaries and alternates as one letter (or `-`, or several joined by +) per group."""
    assert layout is not None
    return "".join(layout.primary), "".join("+".join(names) or "-" for names in layout.alternates)


def table(layout: Layout | None, epoch: int = 1) -> ExpertTable:
    assert layout is not None
    return ExpertTable(DEPLOYMENT, "rev-1", Epoch(epoch), LAYERS, FfnLayout(GROUPS, GROUPS), table_of(layout))


@pytest.mark.parametrize(
    ("names", "primary", "alternate"),
    [
        ("a", "aaaaaaaa", "--------"),
        ("ab", "aaaabbbb", "bbbbaaaa"),
        ("abc", "aaabbbcc", "cbcacaba"),
        ("abcdefgh", "abcdefgh", "badcfehg"),
    ],
)
def test_primaries_are_even_and_every_group_has_a_stand_in(names: str, primary: str, alternate: str) -> None:
    assert shown(assign(fleet(*names), None)) == (primary, alternate)


def test_nobody_cannot_hold_anything_and_too_little_room_is_no_layout() -> None:
    assert assign([], None) is None
    assert assign([member("a", room=3), member("b", 1, room=4)], None) is None


def test_room_is_filled_with_primaries_first() -> None:
    assert shown(assign([member("a", room=4), member("b", 1, room=4)], None)) == ("aaaabbbb", "--------")
    assert shown(assign([member("a", room=2), member("b", 1, room=8)], None)) == ("aabbbbbb", "bb------")


def test_a_member_that_is_twice_as_slow_gets_half_as_much_and_noise_is_ignored() -> None:
    slow = [member("a", unit_cost_s=2e-5), member("b", 1, unit_cost_s=4e-5)]
    assert shown(assign(slow, None))[0] == "aaaaaabb"
    noisy = [member("a", unit_cost_s=2.0e-5), member("b", 1, unit_cost_s=2.6e-5)]
    assert shown(assign(noisy, None))[0] == "aaaabbbb"


def test_a_third_member_takes_over_as_little_as_an_even_split_needs() -> None:
    before = table(assign(fleet("a", "b"), None))
    after = assign([member("a", 0, loaded="01234567"), member("b", 1, loaded="01234567"), member("c", 2)], before)
    assert shown(after)[0] == "aaacbbbc"
    assert [m.instance_id for m in after.members] == ["a", "b", "c"] if after else False


def test_a_lost_members_groups_go_to_whoever_has_them_loaded() -> None:
    before = table(assign(fleet("a", "b", "c"), None))
    survivors = [member("a", 0, loaded="01257"), member("c", 2, loaded="134567")]
    after = assign(survivors, before)
    assert shown(after) == ("aaaccacc", "cccaacaa")


def test_a_member_that_returns_gets_its_old_groups() -> None:
    first = assign(fleet("a", "b"), None)
    alone = assign([member("a", loaded="01234567")], table(first))
    assert shown(alone)[0] == "aaaaaaaa"
    again = assign([member("a", loaded="01234567"), member("b", 9)], table(alone, 2))
    assert shown(again) == shown(first)


def test_nothing_moves_where_nothing_changed() -> None:
    members = fleet("a", "b", "c")
    first = assign(members, None)
    assert assign(members[::-1], table(first)) == first


def in_force(primary: dict[str, str], alternate: dict[str, str]) -> ExpertTable:
    """A committed table over members of life 1, from their groups."""

    def ranges(groups: str) -> tuple[GroupRange, ...]:
        return (GroupRange(0, LAYERS, tuple(int(g) for g in groups)),) if groups else ()

    made = tuple(
        replace(a, primary=ranges(primary[a.member_id]), alternate=ranges(alternate[a.member_id]))
        for a in table_of(Layout(tuple(fleet(*primary)), (), ()))
    )
    return ExpertTable(DEPLOYMENT, "rev-1", Epoch(1), LAYERS, FfnLayout(GROUPS, GROUPS), made)


def test_a_full_member_gets_nothing_that_it_has_no_room_to_load_beside_what_it_holds() -> None:
    before = in_force({"a": "012", "b": "345", "c": "67"}, {"a": "367", "b": "012", "c": "45"})
    left = fleet("a", "b", room=6)
    assert shown(assign(left, before)) == ("aaabbbaa", "bbba----")


def test_a_group_that_nobody_left_holds_is_given_to_a_full_member_all_the_same() -> None:
    before = in_force({"a": "01", "b": "23", "c": "45", "d": "67"}, {"a": "23", "b": "01", "c": "67", "d": "45"})
    assert shown(assign(fleet("a", "b", room=4), before)) == ("aabbaabb", "--------")


def test_a_stand_in_moves_where_the_last_room_is_with_the_primary_itself() -> None:
    before = in_force({"a": "012", "b": "345", "c": "67"}, {"a": "", "b": "067", "c": "1345"})
    some = fleet("a", "b", "c", room=6)
    first = assign(some, before)
    assert shown(first) == ("aaabbbcc", "bc-accbb")
    second = assign(some, table(first))
    assert shown(second) == ("aaabbbcc", "bccaccbb")
    assert assign(some, table(second)) == second


def test_an_alternate_computes_the_same_bits_as_its_primary() -> None:
    mixed = [member("a", fingerprint="x"), member("b", 1, fingerprint="x"), member("c", 2, fingerprint="y")]
    fast = [replace(m, numerics=Numerics.FAST) for m in mixed]
    found = assign(fast, None)
    assert found is not None
    prints = {m.instance_id: m.fingerprint for m in fast}
    assert set(found.primary) == {"a", "b", "c"}
    for owner, others in zip(found.primary, found.alternates, strict=True):
        assert [prints[name] for name in others] == ([] if owner == "c" else ["x"])


def test_an_invariant_revision_runs_on_one_fingerprint_and_stays_with_it() -> None:
    mixed = [member("a", fingerprint="x"), member("b", 1, fingerprint="y"), member("c", 2, fingerprint="y")]
    first = assign(mixed, None)
    assert shown(first)[0] == "bbbbcccc"
    more = [*mixed, member("d", 3, fingerprint="x"), member("e", 4, fingerprint="x")]
    later = assign(more, table(first))
    assert shown(later)[0] == "bbbbcccc"
    assert shown(assign([m for m in more if m.fingerprint == "x"], table(first)))[0] == "aaadddee"


def test_members_that_can_hold_everything_twice_take_over_from_those_that_cannot_any_more() -> None:
    mixed = [member("a", fingerprint="x"), member("b", 1, fingerprint="y"), member("c", 2, fingerprint="x")]
    before = table(assign(mixed, None))
    left = mixed[:2]
    assert shown(assign(left, before)) == ("aaaaaaaa", "--------")
    assert shown(assign([*left, member("d", 3, fingerprint="y")], before)) == ("bbbbdddd", "ddddbbbb")


def test_the_groups_of_one_primary_are_spread_over_its_stand_ins() -> None:
    found = assign(fleet("a", "b", "c", "d"), None)
    assert found is not None
    for name in "abcd":
        stand_ins = [others[0] for owner, others in zip(found.primary, found.alternates, strict=True) if owner == name]
        assert len(set(stand_ins)) == len(stand_ins) == 2


def test_a_half_loaded_group_does_not_count_as_loaded() -> None:
    half = replace(member("b", 1), loaded=(GroupRange(0, LAYERS - 1, (0, 1, 2, 3)),))
    whole = replace(member("b", 1), loaded=(GroupRange(0, 1, (0, 1, 2, 3)), GroupRange(1, LAYERS, (0, 1, 2, 3))))
    assert shown(assign([member("a"), half], None))[0] == "aaaabbbb"
    assert shown(assign([member("a"), whole], None))[0] == "bbbbaaaa"


def test_a_layout_becomes_assignments_by_rank_over_all_layers() -> None:
    found = assign(fleet("a", "b"), None)
    assert found is not None
    first, second = table_of(found)
    assert (first.member_id, first.rank, first.data_endpoints) == ("a", 0, ("shm:/run/a.sock",))
    assert first.primary == second.alternate == (GroupRange(0, LAYERS, (0, 1, 2, 3)),)
    assert first.alternate == second.primary == (GroupRange(0, LAYERS, (4, 5, 6, 7)),)
