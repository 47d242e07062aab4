"""The KV arena: fixed pages of keys and values, addressed by integer ids that the shard's core hands out.

    pages[layer][0 = keys, 1 = values][page][kv_head][slot][dim]

Head-major inside a page, so that a run of pages with adjacent ids is one strided operand of one attention call.
Reference counts, sharing and copy-on-write are decided by the caller; the arena only holds bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from katsura.domain.shape import DType
from katsura.model.config import ModelConfig
from katsura.model.linear import TORCH_DTYPE


class KvArena:
    """`page_count` pages of `page_tokens` slots in every layer, zeroed."""

    def __init__(
        self,
        config: ModelConfig,
        page_count: int,
        page_tokens: int,
        dtype: DType,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = config.shape
        self.page_count, self.page_tokens = page_count, page_tokens
        self._heads, self._dim = shape.kv_head_count, shape.head_size
        self.data = torch.zeros(
            (shape.layer_count, 2, page_count, self._heads, page_tokens, self._dim),
            dtype=TORCH_DTYPE[dtype],
            device=device,
        )
        self._rows = [layer.view(-1, self._dim) for layer in self.data]
        self._keys, self._values = [layer[0] for layer in self.data], [layer[1] for layer in self.data]

    @property
    def device(self) -> torch.device:
        """Where the pages live."""
        return self.data.device

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return self.data.numel() * self.data.element_size()

    @staticmethod
    def page_bytes(config: ModelConfig, page_tokens: int, dtype: DType) -> int:
        """Bytes of one page over all layers."""
        shape = config.shape
        return 2 * shape.layer_count * shape.kv_head_count * page_tokens * shape.head_size * dtype.size_bytes

    def slot_rows(self, pages: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Where tokens at (`pages[i]`, `slots[i]`) go: an index for `write`, the same in every layer."""
        where = torch.tensor([pages, slots], dtype=torch.int64, device=self.device)
        heads = torch.arange(self._heads, device=self.device) * self.page_tokens
        keys = (where[0] * (self._heads * self.page_tokens) + where[1]).unsqueeze(1) + heads
        values = keys + self.page_count * self._heads * self.page_tokens
        return torch.cat((keys, values), 1).reshape(-1)

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Store `kv` `[tokens, 2 * kv_heads * dim]` (keys, then values) at what `slot_rows` returned."""
        self._rows[layer].index_copy_(0, rows, kv.reshape(-1, self._dim))

    def run(self, layer: int, first_page: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[count, kv_heads, page_tokens, dim]` of adjacent pages, without a copy."""
        return self._keys[layer].narrow(0, first_page, count), self._values[layer].narrow(0, first_page, count)

    def copy_page(self, source: int, target: int) -> None:
        """Copy page `source` onto page `target` in every layer."""
        self.data[:, :, target].copy_(self.data[:, :, source])
