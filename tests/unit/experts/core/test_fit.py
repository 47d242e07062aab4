"""The fit finds the costs that the timings were made of."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from katsura.domain.cost import FrameCost
from katsura.experts.core.fit import Sample, fit

ROWS = (1, 2, 4, 8, 16, 32, 64)


@given(st.floats(1e-6, 1e-2), st.floats(1e-8, 1e-3), st.integers(1, 8))
def test_exact_timings_give_the_costs_back(unit_s: float, token_s: float, units: int) -> None:
    cost = FrameCost(unit_s, token_s)
    found = fit([Sample(units, units * rows, cost.predict_s(units, units * rows)) for rows in ROWS])
    assert found.unit_s == pytest.approx(unit_s, rel=1e-4, abs=1e-9)
    assert found.token_s == pytest.approx(token_s, rel=1e-4, abs=1e-11)


def test_a_cost_is_never_negative() -> None:
    falling = fit([Sample(1, 1, 2.0), Sample(1, 2, 1.0), Sample(1, 4, 0.5)])
    assert falling.token_s == 0.0
    assert falling.unit_s > 0
    steep = fit([Sample(1, 1, 1.0), Sample(1, 2, 4.0), Sample(1, 4, 16.0)])
    assert steep.unit_s == 0.0
    assert steep.token_s > 0


def test_one_shape_alone_is_a_cost_per_unit() -> None:
    assert fit([Sample(2, 2, 1.0), Sample(2, 2, 1.0)]) == FrameCost(0.5, 0.0)
