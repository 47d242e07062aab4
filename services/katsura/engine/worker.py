"""The compute process of a unified engine: `python -m katsura.engine.worker FD`."""

from __future__ import annotations

import torch

from katsura.attention import worker
from katsura.attention.compute import MemberPool
from katsura.attention.config import ShardConfig
from katsura.attention.runner import Ffn, Model
from katsura.model.ffn import LocalFfn
from katsura.weights.load import load_group
from katsura.weights.reader import Checkpoint


def load_experts(config: ShardConfig, model: Model) -> tuple[Ffn, MemberPool | None]:
    """All reduction groups of all layers, in this process."""
    groups, layers = range(model.layout.group_count), range(model.config.shape.layer_count)
    with Checkpoint(model.folder) as checkpoint, torch.inference_mode():
        held = [
            [load_group(checkpoint, model.config, model.layout, layer, group, model.kernels) for group in groups]
            for layer in layers
        ]
    return LocalFfn(held, model.kernels), None


if __name__ == "__main__":
    worker.main("engine", load_experts)
