"""Mixtral: Llama's attention, and a gate over experts that each are a SwiGLU FFN."""

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


class Mixtral:
    """Unit `u` is expert `u`: on disk w1 is the gate, w3 the up and w2 the down projection."""

    def model_tensors(self, config: ModelConfig) -> ModelTensors:
        """Tensors outside the layers."""
        return decoder_model_tensors(config)

    def layer_tensors(self, config: ModelConfig, layer: int) -> LayerTensors:
        """The attention side of `layer`, with its gate."""
        return decoder_layer_tensors(config, layer, "block_sparse_moe.gate.weight")

    def unit_tensors(self, config: ModelConfig, layout: FfnLayout, layer: int, unit: int) -> UnitTensors:
        """Expert `unit` of `layer`."""
        hidden, width = config.shape.hidden_size, config.shape.ffn_size
        prefix = f"model.layers.{layer}.block_sparse_moe.experts.{unit}"
        return UnitTensors(
            gate=TensorSlice(f"{prefix}.w1.weight", (width, hidden)),
            up=TensorSlice(f"{prefix}.w3.weight", (width, hidden)),
            down=TensorSlice(f"{prefix}.w2.weight", (hidden, width)),
        )
