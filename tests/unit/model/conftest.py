"""Tiny random models as transformers saves them, and a driver that runs ours the way a shard does."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics, layout_for
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.calibrate import plan_kernels
from katsura.model.config import ModelConfig, parse_config
from katsura.model.decoder import Decoder
from katsura.model.families.tensors import TensorSlice
from katsura.model.ffn import LocalFfn
from katsura.model.kernels import KernelPlan, LinearBackend
from katsura.model.kv import KvArena
from katsura.model.weights import build_attention, build_group

SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Tiny:
    """A saved checkpoint: the peer that transformers loads from it, and its parsed parts."""

    peer: Any
    raw: dict[str, Any]
    config: ModelConfig
    tensors: dict[str, Tensor]

    def read(self, piece: TensorSlice) -> Tensor:
        tensor = self.tensors[piece.name]
        if piece.rows is not None:
            tensor = tensor[slice(*piece.rows)]
        if piece.cols is not None:
            tensor = tensor[:, slice(*piece.cols)]
        assert tuple(tensor.shape) == piece.shape
        return tensor

    def peer_logits(self, ids: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = self.peer(torch.tensor([list(ids)])).logits[0]
        return logits.float()


def save_tiny(folder: Path, family: str, **changes: Any) -> Tiny:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

    config_class = {"llama": LlamaConfig, "mixtral": MixtralConfig}[family]
    extra = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else {}
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config_class(**(SIZES | extra | changes)))
    model.save_pretrained(folder)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    raw = json.loads((folder / "config.json").read_text())
    return Tiny(peer, raw, parse_config(raw), load_file(folder / "model.safetensors"))


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {}),
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    """Every variant, saved and loaded once."""
    root = tmp_path_factory.mktemp("tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: save_tiny(root / name, family, **changes) for name, (family, changes) in VARIANTS.items()}


@pytest.fixture(params=list(VARIANTS))
def tiny(request: pytest.FixtureRequest, tiny_models: dict[str, Tiny]) -> Tiny:
    return tiny_models[request.param]


@dataclass
class Engine:
    """Our model in one process: what a shard does, with its pages handed out by the test."""

    config: ModelConfig
    kernels: KernelPlan
    decoder: Decoder
    ffn: LocalFfn
    arena: KvArena

    def step(self, *sequences: tuple[Sequence[int], int, Sequence[int]]) -> list[Tensor]:
        """Run `(new ids, start, pages)` of each sequence as one batch; logits of every new token, per sequence."""
        batch = StepBatch([SequenceStep(start, len(ids), pages, range(len(ids))) for ids, start, pages in sequences])
        with torch.inference_mode():
            step = self.decoder.prepare(batch)
            residual = self.decoder.embed(torch.tensor([i for ids, _, _ in sequences for i in ids]))
            for layer in range(self.config.shape.layer_count):
                residual, inputs = self.decoder.attend(layer, residual, step)
                residual.add_(self.ffn.apply(layer, inputs))
            logits = self.decoder.logits(residual, batch.logit_rows())
        return list(logits.split([len(ids) for ids, _, _ in sequences]))

    def prompt(self, ids: Sequence[int], pages: Sequence[int], chunk: int, start: int = 0) -> Tensor:
        """Logits of all of `ids`, prefilled `chunk` tokens at a time."""
        parts = [self.step((ids[i : i + chunk], start + i, pages))[0] for i in range(0, len(ids), chunk)]
        return torch.cat(parts)


@cache
def cached_plan(
    shape: ModelShape, layout: FfnLayout, dtype: DType, numerics: Numerics, backends: tuple[LinearBackend, ...]
) -> KernelPlan:
    return plan_kernels(shape, layout, dtype, numerics, time.perf_counter, backends)


TORCHS = (LinearBackend.PACKED, LinearBackend.PLAIN)


def build_engine(
    tiny: Tiny,
    *,
    numerics: Numerics = Numerics.INVARIANT,
    dtype: DType = DType.F32,
    page_tokens: int = 16,
    page_count: int = 64,
    slices: int = 4,
    groups: int = 2,
    kernels: KernelPlan | None = None,
    backends: tuple[LinearBackend, ...] = tuple(LinearBackend),
) -> Engine:
    layout: FfnLayout = layout_for(tiny.config.shape, slices, groups)
    if kernels is None:
        kernels = cached_plan(tiny.config.shape, layout, dtype, numerics, backends)
    arena = KvArena(tiny.config, page_count, page_tokens, dtype)
    decoder = Decoder(tiny.config, build_attention(tiny.config, tiny.read, kernels), arena, kernels)
    layers = [
        [build_group(tiny.config, layout, layer, group, tiny.read, kernels) for group in range(groups)]
        for layer in range(tiny.config.shape.layer_count)
    ]
    return Engine(tiny.config, kernels, decoder, LocalFfn(layers, kernels), arena)


@pytest.fixture(params=["native", "torch"])
def engine_of(request: pytest.FixtureRequest) -> Any:
    """`build_engine`, for tests that need their own: with our own kernels, and without."""
    return build_engine if request.param == "native" else partial(build_engine, backends=TORCHS)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
