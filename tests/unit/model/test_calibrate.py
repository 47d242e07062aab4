from __future__ import annotations

import itertools
import time

import pytest
import torch

from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics
from katsura.model.calibrate import (
    attention_is_invariant,
    cancelling_operands,
    invariant_kernel,
    linear_shapes,
    native_works,
    plan_kernels,
)
from katsura.model.kernels import AttentionBackend, LinearBackend
from katsura.model.linear import PackedLinear

SHAPE = ModelShape("llama", 2, 48, 6, 2, 8, 64, 0, 0, 199, 512)


def moe() -> ModelShape:
    return ModelShape("mixtral", 2, 48, 6, 2, 8, 64, 4, 2, 199, 512)


def test_every_product_of_a_dense_model_is_planned():
    assert linear_shapes(SHAPE, FfnLayout(8, 4)) == {(48, 80), (48, 48), (48, 199), (48, 32), (16, 48)}


def test_every_product_of_a_mixture_is_planned():
    assert linear_shapes(moe(), FfnLayout(4, 2)) == {(48, 80), (48, 48), (48, 199), (48, 128), (64, 48), (48, 4)}


@pytest.mark.parametrize("dtype", list(DType))
def test_a_planned_product_gives_each_row_the_same_bits_in_any_company(dtype):
    plan = plan_kernels(SHAPE, FfnLayout(8, 4), dtype, Numerics.INVARIANT, time.perf_counter)
    generator = torch.Generator().manual_seed(11)
    for (k, n), kernel in plan.linear.items():
        x, weight = cancelling_operands(600, k, n, dtype, generator)
        linear = PackedLinear(weight, kernel)
        whole = linear(x)
        for first, rows in itertools.product((0, 3, 87), (*range(1, 20), 64, 65, 100, 513)):
            assert torch.equal(linear(x[first : first + rows]), whole[first : first + rows])


def test_a_kernel_whose_rows_depend_on_their_number_is_padded():
    x = torch.randn(512, 8)

    def product(rows):
        return rows * (2.0 if rows.shape[0] < 4 else 1.0)

    kernel = invariant_kernel(LinearBackend.PLAIN, product, x)
    assert (kernel.rows_min, kernel.rows_max) == (4, 512)


def test_a_kernel_whose_rows_depend_on_their_place_is_given_one_row_at_a_time():
    kernel = invariant_kernel(
        LinearBackend.PLAIN, lambda rows: rows + torch.arange(len(rows))[:, None], torch.ones(512, 8)
    )
    assert (kernel.rows_min, kernel.rows_max) == (1, 1)


def test_attention_rows_that_depend_on_their_number_are_noticed(monkeypatch):
    def uneven(q, k, v, mask):
        return q * (2.0 if q.shape[2] % 4 else 1.0), q[..., 0].float()

    monkeypatch.setattr("katsura.model.calibrate.part_function", lambda backend: uneven)
    generator = torch.Generator().manual_seed(1)
    tried = [
        attention_is_invariant(AttentionBackend.MATMUL, SHAPE, DType.F32, multiple, generator)
        for multiple in (1, 2, 4, 8)
    ]
    assert tried == [False, False, True, True]


def test_fast_numerics_pad_nothing():
    plan = plan_kernels(SHAPE, FfnLayout(8, 4), DType.F32, Numerics.FAST, time.perf_counter)
    assert {(kernel.rows_min, kernel.rows_max) for kernel in plan.linear.values()} == {(1, 0)}
    assert plan.attention.rows_multiple == 1


def test_cancelling_operands_leave_only_rounding():
    x, weight = cancelling_operands(64, 97, 33, DType.BF16, torch.Generator().manual_seed(1))
    assert (x.double() @ weight.double().t() == 0).all()
    assert (x.float() @ weight.float().t() != 0).any()


def test_the_choice_of_backends_can_be_narrowed():
    backends = [LinearBackend.PLAIN]
    plan = plan_kernels(SHAPE, FfnLayout(8, 4), DType.F32, Numerics.INVARIANT, time.perf_counter, backends)
    assert {kernel.backend for kernel in plan.linear.values()} == {LinearBackend.PLAIN}


@pytest.mark.parametrize("dtype", list(DType))
def test_our_own_kernels_compute_a_whole_model_wherever_they_work_and_nothing_elsewhere(dtype):
    plan = plan_kernels(SHAPE, FfnLayout(8, 4), dtype, Numerics.INVARIANT, time.perf_counter)
    chosen = {kernel.backend for kernel in plan.linear.values()}
    if native_works(dtype):
        assert (chosen, plan.attention.backend) == ({LinearBackend.NATIVE}, AttentionBackend.NATIVE)
        assert {(kernel.rows_min, kernel.rows_max) for kernel in plan.linear.values()} == {(1, 512)}
        assert plan.fuse_groups
    else:
        assert LinearBackend.NATIVE not in chosen
        assert plan.attention.backend is not AttentionBackend.NATIVE
