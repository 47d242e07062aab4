"""From a model folder to the containers of `katsura.model`: what leads a generation, and what a member holds."""

from __future__ import annotations

import json
from pathlib import Path

from katsura.domain.errors import DataLossError, NotFoundError, Reason
from katsura.domain.shape import FfnLayout
from katsura.model.config import ModelConfig, parse_config
from katsura.model.kernels import KernelPlan
from katsura.model.weights import AttentionWeights, GroupWeights, build_attention, build_group
from katsura.weights.reader import Checkpoint


def read_config(folder: Path) -> ModelConfig:
    """The typed `config.json` of a model folder.

    Raises:
        NotFoundError: there is none.
        DataLossError: it is not a JSON object.
        InvalidArgumentError: it asks for a model that is not served.
    """
    try:
        raw = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise NotFoundError(
            f"{folder} has no config.json, so it is not a model folder", reason=Reason.WEIGHTS_UNAVAILABLE
        ) from None
    except ValueError as error:
        raise DataLossError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise DataLossError(f"{folder / 'config.json'} is not a JSON object")
    return parse_config(raw)


def load_attention(checkpoint: Checkpoint, config: ModelConfig, kernels: KernelPlan) -> AttentionWeights:
    """What an attention shard holds; no FFN weight is read. The dtype is `kernels.dtype`."""
    return build_attention(config, checkpoint, kernels)


def load_group(
    checkpoint: Checkpoint, config: ModelConfig, layout: FfnLayout, layer: int, group: int, kernels: KernelPlan
) -> GroupWeights:
    """What a member holds for reduction group `group` of `layer`; no attention weight is read."""
    return build_group(config, layout, layer, group, checkpoint, kernels)
