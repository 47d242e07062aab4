"""The kernels as Python calls them.

Structures mirror `kernels.h`. Tensors are f32, contiguous and on the CPU; nobody checks that again here, because a
decode loop comes by a hundred times per token. Whoever makes a structure keeps its tensors alive with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from katsura.domain.errors import FailedPreconditionError

PANEL = 64
"""Columns of a panel: `kernels.h`."""
PATH = Path(__file__).with_name("kernels.so")
"""Where the build puts the library."""
SETS = ("avx512", "avx2")
"""Instruction sets that there are kernels for, best first. All give the same bits."""


class _FfnData(Structure):
    _fields_ = (("gate_up", c_void_p), ("down", c_void_p), ("hidden", c_int64), ("width", c_int64))


class _AttentionData(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "qkv", "o", "post_norm", "keys", "values")),
        *((name, c_int64) for name in ("hidden", "heads", "kv_heads", "dim", "page_tokens", "page_stride", "lanes")),
        ("eps", c_float),
    )


class _Sequence(Structure):
    _fields_ = (("row", c_int64), ("count", c_int64), ("position", c_int64), ("pages", c_void_p))


class _Step(Structure):
    _fields_ = (
        ("rows", c_int64),
        ("sequences", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("sequence", POINTER(_Sequence)),
    )


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError:
        return None
    library.katsura_select.argtypes = (c_char_p,)
    library.katsura_select.restype = c_int
    library.katsura_linear.argtypes = (c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p)
    library.katsura_ffn.argtypes = (c_void_p, c_void_p, c_int64, c_void_p)
    library.katsura_attend.argtypes = (c_void_p, c_void_p, c_void_p, c_void_p)
    for function in (library.katsura_linear, library.katsura_ffn, library.katsura_attend):
        function.restype = None
    return library if any(library.katsura_select(name.encode()) for name in SETS) else None


def available() -> bool:
    """Whether the kernels were built and this CPU runs one of `SETS`."""
    return _library() is not None


def select(name: str) -> bool:
    """Compute with instruction set `name` from now on, in the whole process; False where that cannot be.

    The best one is selected until then.
    """
    return available() and bool(_loaded().katsura_select(name.encode()))


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise FailedPreconditionError(
            "the kernel plan wants Katsura's own kernels, which this installation does not have: install it again "
            "where there is a C compiler (cc) and a CPU with AVX2, or remove the plan to make one of torch's",
            field="kernels",
        )
    return library


def pack(weight: Tensor) -> Tensor:
    """f32 `[out, in]` as panels `[ceil(out / PANEL), in, PANEL]`. FailedPreconditionError where nobody reads them."""
    _loaded()
    if weight.dtype != torch.float32:
        raise FailedPreconditionError(f"Katsura's own kernels compute in f32, not {weight.dtype}", field="kernels")
    rows, width = weight.shape
    panels = torch.zeros(-(-rows // PANEL), width, PANEL)
    for panel, part in zip(panels, torch.split(weight, PANEL), strict=True):  # torch is quick at turning small matrices
        panel[:, : len(part)].copy_(part.t())
    return panels


def unpack(panels: Tensor, out_width: int) -> Tensor:
    """What `pack` was given."""
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])[:out_width]


def linear(x: Tensor, panels: Tensor, out_width: int) -> Tensor:
    """`x @ weight.T` `[rows, out]` for `x` `[rows, in]`."""
    rows, width = x.shape
    y = torch.empty(rows, out_width)
    x = x.contiguous()
    _loaded().katsura_linear(x.data_ptr(), rows, panels.data_ptr(), width, out_width, y.data_ptr())
    return y


class Ffn:
    """`down(silu(gate(x)) * up(x))` of one block."""

    def __init__(self, gate_up: Tensor, down: Tensor, hidden: int, width: int) -> None:
        """Panels of `[2 * width, hidden]` and `[hidden, width]`."""
        self._weights = gate_up, down
        self._data = _FfnData(gate_up.data_ptr(), down.data_ptr(), hidden, width)
        self._at = ctypes.addressof(self._data)
        self._call = _loaded().katsura_ffn

    def __call__(self, x: Tensor) -> Tensor:
        """`[rows, hidden]` to the same."""
        x = x.contiguous()
        y = torch.empty_like(x)
        self._call(self._at, x.data_ptr(), x.shape[0], y.data_ptr())
        return y

    def write(self, x: Tensor, y: Tensor) -> None:
        """The same into `y`; both contiguous."""
        self._call(self._at, x.data_ptr(), x.shape[0], y.data_ptr())


class Step:
    """What all layers of a step share."""

    def __init__(self, cos: Tensor, sin: Tensor, sequences: Sequence[tuple[int, int, Sequence[int]]]) -> None:
        """`cos` and `sin` `[rows, dim]`; per sequence its new rows, the position of the first, and its pages."""
        self._pages = [torch.tensor(pages, dtype=torch.int64) for _, _, pages in sequences]
        self._tables = cos, sin
        self._sequences = (_Sequence * len(sequences))()
        row = 0
        for data, (count, position, _), pages in zip(self._sequences, sequences, self._pages, strict=True):
            data.row, data.count, data.position, data.pages = row, count, position, pages.data_ptr()
            row += count
        self._data = _Step(row, len(sequences), cos.data_ptr(), sin.data_ptr(), self._sequences)
        self.at = ctypes.addressof(self._data)
        """Where the structure lies."""


class Attention:
    """The attention of one layer: norm, q, k and v, rotation, paged attention, output, the residual, the next norm."""

    def __init__(
        self,
        norms: tuple[Tensor, Tensor],
        products: tuple[Tensor, Tensor],
        pages: tuple[Tensor, Tensor],
        heads: int,
        eps: float,
    ) -> None:
        """Input and post norm; panels of qkv and o; keys and values `[page, kv_head, slot, dim]` of the layer's arena,
        which has pages of our own layout from now on (`kernels.h`)."""
        _, kv_heads, page_tokens, dim = pages[0].shape
        self._tensors = norms, products, pages
        lanes = next(lanes for lanes in (16, 8, 4, 2, 1) if page_tokens % lanes == 0)
        self._data = _AttentionData(
            norms[0].data_ptr(), products[0].data_ptr(), products[1].data_ptr(), norms[1].data_ptr(),
            pages[0].data_ptr(), pages[1].data_ptr(),
            norms[0].shape[0], heads, kv_heads, dim, page_tokens, kv_heads * page_tokens * dim, lanes, eps,
        )  # fmt: skip
        self._at = ctypes.addressof(self._data)
        self._call = _loaded().katsura_attend

    def __call__(self, residual: Tensor, step: Step) -> Tensor:
        """Adds to `residual` `[rows, hidden]` in place; returns its norm, the FFN's input."""
        hidden = torch.empty_like(residual)
        self._call(self._at, step.at, residual.data_ptr(), hidden.data_ptr())
        return hidden
