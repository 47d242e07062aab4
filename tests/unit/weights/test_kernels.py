from __future__ import annotations

from pathlib import Path

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics
from katsura.weights.kernels import kernel_plan, ship_plan

SHAPE = ModelShape("llama", 1, 16, 2, 1, 8, 32, 0, 0, 32, 64)
LAYOUT = FfnLayout(4, 2)


def ticks() -> float:
    return 0.0


def test_the_second_process_reads_the_plan_of_the_first(tmp_path: Path) -> None:
    first = kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks)
    (path,) = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    assert kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks) == first
    assert path.stat().st_mtime_ns == before


def test_another_promise_has_a_plan_of_its_own(tmp_path: Path) -> None:
    kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks)
    plan = kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.INVARIANT, now=ticks)
    assert plan.numerics is Numerics.INVARIANT
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_plan_says_what_to_do(tmp_path: Path) -> None:
    damaged = tmp_path / "plan.json"
    damaged.write_text("{")
    with pytest.raises(InvalidArgumentError, match="remove it"):
        kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks, fixed=damaged)


def test_a_shipped_plan_is_read_where_nobody_may_write(tmp_path: Path) -> None:
    path = ship_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks)
    shipped = path.read_text()
    kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "no plan of this machine was made beside it"
    assert path.read_text() == shipped


def test_a_shipped_plan_speaks_for_its_own_promise_only(tmp_path: Path) -> None:
    ship_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.FAST, now=ticks)
    plan = kernel_plan(tmp_path, SHAPE, LAYOUT, DType.F32, Numerics.INVARIANT, now=ticks)
    assert plan.numerics is Numerics.INVARIANT
