"""The attention side of a model, layer by layer.

The caller owns the loop, because the FFN may be in other processes:

    step = decoder.prepare(batch)
    residual = decoder.embed(token_ids)
    for layer in range(layer_count):
        residual, ffn_input = decoder.attend(layer, residual, step)
        residual += ffn.apply(layer, ffn_input)
    logits = decoder.logits(residual, batch.logit_rows())

Call it under `torch.inference_mode()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from katsura.domain.errors import InvalidArgumentError
from katsura.model.batch import StepBatch
from katsura.model.config import ModelConfig
from katsura.model.ffn import FfnInput
from katsura.model.gate import route
from katsura.model.kernels import AttentionBackend, KernelPlan
from katsura.model.kv import KvArena
from katsura.model.norm import rms_norm
from katsura.model.paged import PagedAttention
from katsura.model.tiled import TiledAttention
from katsura.model.weights import AttentionWeights

Attend = Callable[[int, Tensor], Tensor]
"""`(layer, residual) -> hidden`: adds the layer's attention to `residual` `[rows, hidden]` in place, and norms it."""


class Decoder:
    """Norms, attention over paged KV, the MoE gate, and logits, of one model on one arena."""

    def __init__(self, config: ModelConfig, weights: AttentionWeights, arena: KvArena, kernels: KernelPlan) -> None:
        self._config, self._weights = config, weights
        self._page_tokens, self._page_count = arena.page_tokens, arena.page_count
        native = kernels.attention.backend is AttentionBackend.NATIVE
        self._layers = (
            PagedAttention(config, weights, arena) if native else TiledAttention(config, weights, arena, kernels)
        )

    def prepare(self, batch: StepBatch) -> Attend:
        """What all layers of a step share.

        Raises:
            InvalidArgumentError: a sequence has no new token, fewer pages than it needs, or one that is not there.
        """
        for index, sequence in enumerate(batch.sequences):
            needed = -(-(sequence.start + sequence.count) // self._page_tokens)
            if sequence.count < 1 or len(sequence.pages) < needed:
                raise InvalidArgumentError(
                    f"sequence {index} of the step has {sequence.count} new tokens and {len(sequence.pages)} pages "
                    f"where it needs at least 1 and {needed}",
                    field=f"sequences[{index}]",
                )
            if not 0 <= min(sequence.pages) <= max(sequence.pages) < self._page_count:
                raise InvalidArgumentError(
                    f"sequence {index} of the step names pages beyond the {self._page_count} of the arena",
                    field=f"sequences[{index}].pages",
                )
        return self._layers.step(batch)

    def embed(self, token_ids: Tensor) -> Tensor:
        """The residual stream `[rows, hidden]` of int64 `token_ids`."""
        return self._weights.embedding.index_select(0, token_ids)

    def attend(self, layer: int, residual: Tensor, step: Attend) -> tuple[Tensor, FfnInput]:
        """Attention of `layer`: writes the new keys and values, adds to `residual` in place, prepares the FFN's input.

        Writing again what was written before is harmless: a step may be repeated from any layer's residual.
        """
        hidden, router = step(layer, residual), self._weights.layers[layer].router
        if router is None:
            return residual, FfnInput(hidden, None)
        chosen, renormalise = self._config.shape.experts_per_token, self._config.renormalise_top_k
        return residual, FfnInput(hidden, route(hidden, router, chosen, renormalise=renormalise))

    def logits(self, residual: Tensor, rows: Sequence[int]) -> Tensor:
        """f32 logits `[len(rows), vocab]` of the named rows of the last layer's residual."""
        if len(rows) != residual.shape[0]:
            residual = residual.index_select(0, torch.tensor(rows, dtype=torch.int64, device=residual.device))
        normed = rms_norm(residual, self._weights.final_norm, self._config.norm_eps)
        return self._weights.lm_head(normed).float()
