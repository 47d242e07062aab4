"""Matrix products with weights that never change.

At 1 to 64 rows a product reads its weights from memory and little else, so they are reordered once into the blocks
that oneDNN wants. The operators are private to torch (its compiler uses them): `packed_works` tries them, and `PLAIN`
is there where it says no.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from katsura.domain.shape import DType
from katsura.model.kernels import LinearBackend, LinearKernel
from katsura.native import library as native

TORCH_DTYPE = {DType.F32: torch.float32, DType.BF16: torch.bfloat16}
"""Our storage types as torch names them."""


def packed_works(dtype: DType) -> bool:
    """Whether the packed backend computes a small product of `dtype` right on this machine and torch build."""
    weight = torch.linspace(-1, 1, 32 * 16).reshape(32, 16).to(TORCH_DTYPE[dtype])
    x = torch.linspace(1, -1, 3 * 16).reshape(3, 16).to(TORCH_DTYPE[dtype])
    try:
        product = backend_function(LinearBackend.PACKED, weight)(x)
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(product.float(), x.float() @ weight.float().t(), atol=0.1, rtol=0.02)


def backend_function(backend: LinearBackend, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The bare product `x -> x @ weight.T` of one backend, without any care for row counts."""
    stored, operator, rest = _prepared(backend, weight)
    return lambda x: operator(x, stored, *rest)


class PackedLinear:
    """`x @ weight.T` by one kernel of the plan. `weight` is `[out, in]`; the caller may drop it afterwards."""

    __slots__ = (
        "_operator", "_rest", "_rows_max", "_rows_min", "_stored", "in_width", "out_width", "panels", "size_bytes",
    )  # fmt: skip

    def __init__(self, weight: Tensor, kernel: LinearKernel) -> None:
        self.out_width, self.in_width = weight.shape
        self.size_bytes = weight.numel() * weight.element_size()
        self._rows_min = kernel.rows_min
        self._rows_max = kernel.rows_max or 1 << 62
        self._stored, self._operator, self._rest = _prepared(kernel.backend, weight.contiguous())
        self.panels = self._stored if kernel.backend is LinearBackend.NATIVE else None
        """The weight as our own kernels read it, where they compute the product."""

    def dense(self) -> Tensor:
        """The weight `[out, in]` as it was given."""
        if self.panels is not None:
            return native.unpack(self.panels, self.out_width)
        return self._stored.to_dense() if self._stored.is_mkldnn else self._stored

    def __call__(self, x: Tensor) -> Tensor:
        """`[rows, in]` to `[rows, out]`."""
        rows = x.shape[0]
        if self._rows_min <= rows <= self._rows_max:
            return self._operator(x, self._stored, *self._rest)
        if rows < self._rows_min:
            return self(functional.pad(x, (0, 0, 0, self._rows_min - rows)))[:rows]
        return torch.cat([self(piece) for piece in torch.split(x, self._rows_max)])


def _prepared(backend: LinearBackend, weight: Tensor) -> tuple[Tensor, Callable[..., Tensor], tuple[object, ...]]:
    """The weight as the backend keeps it, and the operator with what it takes after x and the weight."""
    if backend is LinearBackend.PLAIN:
        return weight, functional.linear, ()
    if backend is LinearBackend.NATIVE:
        return native.pack(weight), native.linear, (weight.shape[0],)
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous(), None)
    overload = torch.ops.mkldnn._linear_pointwise.default
    # `_op`: without a Python frame around each product.
    return packed, getattr(overload, "_op", overload), (None, "none", [], "")
