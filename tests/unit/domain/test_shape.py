import dataclasses

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import FfnLayout, ModelShape, layout_for

DENSE = ModelShape("llama", 2, 64, 4, 2, 16, 192, 0, 0, 128, 256)


def test_groups_partition_the_units_in_order() -> None:
    layout = FfnLayout(unit_count=8, group_count=4)
    assert [unit for group in range(4) for unit in layout.units_of(group)] == list(range(8))


@pytest.mark.parametrize(("units", "groups"), [(8, 3), (0, 1), (4, 0)])
def test_unequal_groups_are_refused(units: int, groups: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        FfnLayout(units, groups)
    assert caught.value.field == "ffn.groups"


def test_a_dense_ffn_is_cut_into_slices_and_an_moe_into_its_experts() -> None:
    assert layout_for(DENSE, slices=8, groups=4) == FfnLayout(8, 4)
    moe = dataclasses.replace(DENSE, expert_count=4, experts_per_token=2)
    assert layout_for(moe, slices=8, groups=2) == FfnLayout(4, 2)


def test_slices_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="192 cannot be cut into 7"):
        layout_for(DENSE, slices=7, groups=1)
