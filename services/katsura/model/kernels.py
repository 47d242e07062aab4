"""Which kernel computes what: plain data, fixed once per revision, the same in every process of it.

Two kernels for the same product differ in the last bits, so the choice is part of a revision's numerics and never of
a process start: `calibrate.plan_kernels` makes a `KernelPlan` once, it travels as JSON, and every shard and member of
the revision builds its layers from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, Numerics


class LinearBackend(StrEnum):
    """How `x @ w.T` is computed."""

    NATIVE = "native"
    """Our own kernels, f32: the same bits for any rows, and on every CPU that has them."""
    PACKED = "packed"
    """oneDNN on weights reordered once at load."""
    PLAIN = "plain"
    """`torch.nn.functional.linear`: works everywhere."""


class AttentionBackend(StrEnum):
    """How one attention part is computed."""

    NATIVE = "native"
    """Our own kernel over paged KV, f32: no tiles, and the same bits for any page size."""
    FLASH = "flash"
    """The fused CPU kernel of torch, which also returns the log-sum-exp."""
    FLASH_F32 = "flash_f32"
    """The same on pages widened to f32 as they are read: faster than bf16 where a call is many small products."""
    MATMUL = "matmul"
    """Two products and a softmax: works everywhere, but rounds bf16 scores to bf16."""


@dataclass(frozen=True, slots=True)
class LinearKernel:
    """A backend and the row counts for which a row's bits do not depend on its neighbours.

    A call with fewer rows than `rows_min` is padded up to it, one with more than `rows_max` (0: no bound) is cut.
    """

    backend: LinearBackend
    rows_min: int = 1
    rows_max: int = 0


@dataclass(frozen=True, slots=True)
class AttentionKernel:
    """A backend and how query rows are tiled.

    The query heads of a KV head are rows of one call; their count is padded to a multiple of `rows_multiple`. A tile
    covers the queries of one page, or of one token where `one_token` is set (kernels whose rows are not independent).
    """

    backend: AttentionBackend
    rows_multiple: int = 1
    one_token: bool = False


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """The kernels of one revision.

    Attributes:
        dtype: of weights, activations and KV.
        numerics: what the plan was tested for.
        linear: kernel by (input width, output width).
        attention: kernel of every attention part.
        fuse_groups: gate and up of several dense groups may be one product without changing a bit (`ffn.GroupSet`).
    """

    dtype: DType
    numerics: Numerics
    linear: Mapping[tuple[int, int], LinearKernel]
    attention: AttentionKernel
    fuse_groups: bool = False

    def linear_for(self, in_width: int, out_width: int) -> LinearKernel:
        """The kernel of a `[out_width, in_width]` weight."""
        kernel = self.linear.get((in_width, out_width))
        if kernel is None:
            raise InvalidArgumentError(
                f"the kernel plan has no entry for a {out_width} x {in_width} weight: it was made for another model or "
                "FFN layout; make it again",
                field="kernels.linear",
            )
        return kernel

    def to_json(self) -> dict[str, object]:
        """Plain JSON data; `from_json` reads it back."""
        return {
            "dtype": self.dtype.value,
            "numerics": self.numerics.value,
            "linear": {
                f"{k}x{n}": [kernel.backend.value, kernel.rows_min, kernel.rows_max]
                for (k, n), kernel in sorted(self.linear.items())
            },
            "attention": [self.attention.backend.value, self.attention.rows_multiple, self.attention.one_token],
            "fuse_groups": self.fuse_groups,
        }

    @staticmethod
    def from_json(data: Mapping[str, object]) -> KernelPlan:
        """Read what `to_json` wrote.

        Raises:
            InvalidArgumentError: `data` is not a kernel plan.
        """
        try:
            return _read(data)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(
                f"this is not a kernel plan: {error!r}; make it again", field="kernels"
            ) from error


def _read(data: Mapping[str, object]) -> KernelPlan:
    linear, attention = data["linear"], data["attention"]
    if not isinstance(linear, Mapping) or not isinstance(attention, list | tuple):
        raise TypeError("linear must be an object and attention a list")
    kernels = {}
    for key, (backend, rows_min, rows_max) in linear.items():
        k, n = str(key).split("x")
        kernels[int(k), int(n)] = LinearKernel(LinearBackend(backend), int(rows_min), int(rows_max))
    backend, rows_multiple, one_token = attention
    return KernelPlan(
        dtype=DType(str(data["dtype"])),
        numerics=Numerics(str(data["numerics"])),
        linear=kernels,
        attention=AttentionKernel(AttentionBackend(backend), int(rows_multiple), bool(one_token)),
        fuse_groups=bool(data["fuse_groups"]),
    )
