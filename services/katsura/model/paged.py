"""A step's attention through our own kernel: no tiles, no masks, one call per layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from katsura.domain.errors import InternalError
from katsura.model.batch import StepBatch
from katsura.model.config import ModelConfig
from katsura.model.kv import KvArena
from katsura.model.rope import RopeTable
from katsura.model.weights import AttentionWeights
from katsura.native.library import Attention, Step


class PagedAttention:
    """`Decoder`'s layers where the plan says `AttentionBackend.NATIVE`. The arena's keys are in the kernel's order."""

    def __init__(self, config: ModelConfig, weights: AttentionWeights, arena: KvArena) -> None:
        shape = config.shape
        self._rope = RopeTable(config.rope, shape.head_size, torch.float32, arena.device)
        self._layers = []
        for layer, of in enumerate(weights.layers):
            if of.qkv.panels is None or of.o.panels is None:
                raise InternalError("the kernel plan mixes native attention with other products; make it again")
            pages = arena.run(layer, 0, arena.page_count)
            norms, products = (of.input_norm, of.post_norm), (of.qkv.panels, of.o.panels)
            self._layers.append(Attention(norms, products, pages, shape.head_count, config.norm_eps))

    def step(self, batch: StepBatch) -> Callable[[int, Tensor], Tensor]:
        """See `Decoder.prepare`; `batch` has been checked."""
        positions = batch.positions()
        cos, sin = self._rope.at(torch.tensor(positions), max(positions))
        return partial(
            self._attend,
            Step(cos, sin, [(sequence.count, sequence.start, sequence.pages) for sequence in batch.sequences]),
        )

    def _attend(self, step: Step, layer: int, residual: Tensor) -> Tensor:
        return self._layers[layer](residual, step)
