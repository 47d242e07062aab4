import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.leases import GroupRange, revision_id
from katsura.domain.shape import DType, FfnLayout, Numerics

BASE = (b"w" * 32, DType.F32, Numerics.INVARIANT, FfnLayout(8, 4), 1)


def test_a_revision_id_names_everything_that_two_processes_must_share() -> None:
    changes = (b"v" * 32, DType.BF16, Numerics.FAST, FfnLayout(8, 8), 2)
    names = {revision_id(*BASE)}
    for at, change in enumerate(changes):
        names.add(revision_id(*(*BASE[:at], change, *BASE[at + 1 :])))  # type: ignore[arg-type]
    assert len(names) == len(changes) + 1
    assert all(len(name) == 16 for name in names)
    assert revision_id(*BASE) == revision_id(*BASE)


def test_a_range_covers_its_layers_and_groups_only() -> None:
    held = GroupRange(2, 4, (0, 3))
    assert [held.covers(layer, 3) for layer in range(1, 5)] == [False, True, True, False]
    assert not held.covers(2, 1)


@pytest.mark.parametrize("wrong", [(3, 3, (0,)), (-1, 2, (0,)), (0, 2, (1, 0)), (0, 2, (1, 1))])
def test_a_range_that_is_none_is_refused(wrong: tuple[int, int, tuple[int, ...]]) -> None:
    with pytest.raises(InvalidArgumentError):
        GroupRange(*wrong)
