"""Executes a `StepPlan`: page copies, then the layers, with the FFN wherever it may be."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from katsura.attention.core.plan import StepPlan
from katsura.domain.shape import DType, FfnLayout, Numerics
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.config import ModelConfig
from katsura.model.decoder import Decoder
from katsura.model.ffn import FfnInput
from katsura.model.kernels import KernelPlan
from katsura.model.kv import KvArena
from katsura.weights.kernels import kernel_plan
from katsura.weights.load import load_attention, read_config
from katsura.weights.reader import Checkpoint


class Ffn(Protocol):
    """Where the FFN layers are computed: `LocalFfn`, or a pool of members."""

    def apply(self, layer: int, inputs: FfnInput) -> Tensor:
        """The FFN output of `layer`: f32 `[tokens, width]`. A TemporaryError repeals the step; it is run again."""
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """f32 logits `[drawing rows, vocab]` and how many seconds of the step the FFN took."""

    logits: Tensor
    ffn_seconds: float


class Runner:
    """One model over one arena. Belongs to the compute thread."""

    def __init__(self, config: ModelConfig, decoder: Decoder, arena: KvArena, ffn: Ffn) -> None:
        self._layers = config.shape.layer_count
        self._decoder, self._arena, self._ffn = decoder, arena, ffn

    def run(self, plan: StepPlan) -> StepResult:
        """Compute a step. Nothing but slots that the plan may write is changed, so it may be given up and repeated."""
        with torch.inference_mode():
            for source, target in plan.copies:
                self._arena.copy_page(source, target)
            batch = StepBatch(
                [
                    SequenceStep(row.start, len(row.tokens), row.pages, (len(row.tokens) - 1,) if row.draws else ())
                    for row in plan.rows
                ]
            )
            step = self._decoder.prepare(batch)
            residual = self._decoder.embed(torch.tensor([token for row in plan.rows for token in row.tokens]))
            ffn_seconds = 0.0
            for layer in range(self._layers):
                residual, inputs = self._decoder.attend(layer, residual, step)
                start = time.perf_counter()
                residual += self._ffn.apply(layer, inputs)
                ffn_seconds += time.perf_counter() - start
            rows = batch.logit_rows()
            return StepResult(self._decoder.logits(residual, rows) if rows else residual[:0], ffn_seconds)


@dataclass(frozen=True, slots=True)
class Model:
    """An opened model folder: what it is, and the kernels that its revision computes with."""

    folder: Path
    config: ModelConfig
    layout: FfnLayout
    kernels: KernelPlan

    @classmethod
    def open(cls, folder: Path, layout: FfnLayout, dtype: DType, numerics: Numerics, kernels: Path | None) -> Model:
        """Read the configuration and the kernel plan (made now if this is the revision's first process)."""
        config = read_config(folder)
        plan = kernel_plan(folder, config.shape, layout, dtype, numerics, now=time.perf_counter, fixed=kernels)
        return cls(folder, config, layout, plan)

    def decoder(self, arena: KvArena) -> Decoder:
        """Load what an attention shard holds; no FFN weight is read."""
        with Checkpoint(self.folder) as checkpoint, torch.inference_mode():
            return Decoder(self.config, load_attention(checkpoint, self.config, self.kernels), arena, self.kernels)
