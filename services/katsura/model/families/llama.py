"""Llama and everything that publishes under its tensor names (SmolLM2, TinyLlama, Llama 2 and 3)."""

from __future__ import annotations

from katsura.domain.shape import FfnLayout
from katsura.model.config import ModelConfig
from katsura.model.families.tensors import (
    LayerTensors,
    ModelTensors,
    TensorSlice,
    UnitTensors,
    decoder_layer_tensors,
    decoder_model_tensors,
)


class Llama:
    """Dense FFN: unit `u` is rows `[u*w, (u+1)*w)` of gate and up and the same columns of down, which is exact."""

    def model_tensors(self, config: ModelConfig) -> ModelTensors:
        """Tensors outside the layers."""
        return decoder_model_tensors(config)

    def layer_tensors(self, config: ModelConfig, layer: int) -> LayerTensors:
        """The attention side of `layer`."""
        return decoder_layer_tensors(config, layer, None)

    def unit_tensors(self, config: ModelConfig, layout: FfnLayout, layer: int, unit: int) -> UnitTensors:
        """Slice `unit` of the FFN of `layer`."""
        hidden, width = config.shape.hidden_size, config.shape.ffn_size // layout.unit_count
        span, prefix = (unit * width, (unit + 1) * width), f"model.layers.{layer}.mlp"
        return UnitTensors(
            gate=TensorSlice(f"{prefix}.gate_proj.weight", (width, hidden), rows=span),
            up=TensorSlice(f"{prefix}.up_proj.weight", (width, hidden), rows=span),
            down=TensorSlice(f"{prefix}.down_proj.weight", (hidden, width), cols=span),
        )
