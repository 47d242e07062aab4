from katsura.domain.ids import DeploymentName, Epoch, Incarnation, InstanceId
from katsura.domain.leases import GroupRange
from katsura.domain.shape import FfnLayout
from katsura.domain.tables import Assignment, ExpertTable


def holder(name: str, rank: int, primary: int, alternate: int) -> Assignment:
    ranges = (GroupRange(0, 2, (primary,)),), (GroupRange(0, 2, (alternate,)),)
    return Assignment(InstanceId(name), Incarnation(rank), rank, (), "f", *ranges)


def test_a_table_says_who_serves_a_group_who_stands_in_and_what_a_life_holds() -> None:
    first, second = holder("m1", 0, primary=0, alternate=1), holder("m2", 1, primary=1, alternate=0)
    table = ExpertTable(DeploymentName("d"), "r", Epoch(3), 2, FfnLayout(2, 2), (first, second))
    assert table.primary(1, 0) == first
    assert table.alternates(1, 0) == (second,)
    assert (table.primary(2, 0), table.alternates(2, 0)) == (None, ())
    assert table.of(InstanceId("m2"), Incarnation(1)) == second
    assert table.of(InstanceId("m2"), Incarnation(9)) is None
    assert first.holds(0, 0)
    assert first.holds(0, 1)
    assert not first.holds(2, 0)
