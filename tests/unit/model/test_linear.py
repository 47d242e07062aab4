from __future__ import annotations

import pytest
import torch

from katsura.domain.shape import DType
from katsura.model.calibrate import native_works
from katsura.model.kernels import LinearBackend, LinearKernel
from katsura.model.linear import TORCH_DTYPE, PackedLinear, packed_works


def works(backend: LinearBackend, dtype: DType) -> bool:
    return {LinearBackend.NATIVE: native_works, LinearBackend.PACKED: packed_works}.get(backend, lambda _: True)(dtype)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("backend", list(LinearBackend))
@pytest.mark.parametrize(("rows_min", "rows_max"), [(1, 0), (4, 8), (3, 3), (1, 1), (8, 16)])
def test_padding_and_cutting_rows_leaves_the_product(dtype, backend, rows_min, rows_max):
    if not works(backend, dtype):
        pytest.skip(f"this machine has no {backend} {dtype} product")
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(24, 40, generator=generator).to(TORCH_DTYPE[dtype])
    linear = PackedLinear(weight, LinearKernel(backend, rows_min, rows_max))
    for rows in (1, 2, 3, 7, 8, 9, 17, 40):
        x = torch.randn(rows, 40, generator=generator).to(TORCH_DTYPE[dtype])
        tolerance = 1e-5 if dtype is DType.F32 else 0.1
        product = linear(x)
        assert product.shape == (rows, 24)
        assert torch.allclose(product.float(), x.float() @ weight.float().t(), atol=tolerance, rtol=0.01)


def test_a_packed_weight_reports_its_size():
    linear = PackedLinear(torch.zeros(24, 40, dtype=torch.bfloat16), LinearKernel(LinearBackend.PLAIN))
    assert (linear.in_width, linear.out_width, linear.size_bytes) == (40, 24, 1920)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("backend", list(LinearBackend))
def test_the_weight_can_be_had_back(dtype, backend):
    if not works(backend, dtype):
        pytest.skip(f"this machine has no {backend} {dtype} product")
    weight = torch.randn(50, 33).to(TORCH_DTYPE[dtype])
    assert torch.equal(PackedLinear(weight, LinearKernel(backend)).dense(), weight)


def test_a_product_that_is_missing_or_wrong_is_not_called_working(monkeypatch):
    assert packed_works(DType.F32)

    def missing(backend, weight):
        raise AttributeError("no such operator")

    monkeypatch.setattr("katsura.model.linear._prepared", missing)
    assert not packed_works(DType.F32)
    monkeypatch.setattr(
        "katsura.model.linear._prepared", lambda backend, weight: (weight, lambda x, weight: x.new_zeros(3, 32), ())
    )
    assert not packed_works(DType.F32)
