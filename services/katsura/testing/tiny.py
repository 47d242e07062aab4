"""Tiny random models, saved by transformers: seconds to make, every layer and option of a real one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class TinyModel:
    """A model folder, and transformers' own model loaded from it in fp32."""

    folder: Path
    peer: Any

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The peer's f32 logits `[len(ids), vocab]`."""
        with torch.inference_mode():
            logits: torch.Tensor = self.peer(torch.tensor([list(ids)])).logits[0]
        return logits.float()

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The peer's next `count` tokens, each the likeliest."""
        ids = list(prompt)
        for _ in range(count):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]


def save_tiny(folder: Path, family: str, **changes: Any) -> TinyModel:
    """Make a random `llama` or `mixtral` model in `folder`; `changes` go to its configuration."""
    import transformers

    peers: Any = transformers  # half of its functions are not typed
    extra = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "mixtral" else {}
    config = {"llama": peers.LlamaConfig, "mixtral": peers.MixtralConfig}[family](**(_SIZES | extra | changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(7)
        peers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        peer = peers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return TinyModel(folder, peer.eval())
