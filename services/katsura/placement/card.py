"""What a model weighs and costs, read from its `config.json` alone.

Parameter counts equal those of transformers for every family of `EXACT` (a test builds the models without storage and
compares); another `model_type` is read by the same field names and marked `exact=False`. `cost` counts with a card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, Final

from katsura.domain.errors import InvalidArgumentError

EXACT: Final = frozenset(
    (
        "llama",
        "mistral",
        "ministral",
        "phi3",
        "granite",
        "smollm3",
        "helium",
        "ernie4_5",
        "seed_oss",
        "hunyuan_v1_dense",
        "exaone4",
        "olmo2",
        "olmo3",
        "cohere",
        "cohere2",
        "glm4",
        "gemma",
        "gemma2",
        "qwen2",
        "qwen3",
        "gemma3_text",
        "mixtral",
        "qwen2_moe",
        "qwen3_moe",
        "olmoe",
        "flex_olmo",
        "dots1",
        "deepseek_v2",
        "deepseek_v3",
        "gpt_oss",
        "granitemoe",
        "minimax_m2",
        "glm4_moe",
        "glm4_moe_lite",
        "qwen3_next",
        "qwen3_5_text",
        "qwen3_5_moe_text",
    )
)
"""Families whose parameter counts are tested against transformers."""
_TIED: Final = ("gemma", "cohere", "smollm3", "ernie4_5")
"""Beginnings of families whose configs leave out that the head is the embedding."""
_HEAD_SIZES: Final = {
    **dict.fromkeys(("qwen3", "qwen3_moe", "helium", "glm4", "seed_oss"), 128),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), 256),
    "gpt_oss": 64,
}
"""Where a config may leave it out and it is not the hidden size over the heads."""
_WIDE_QK_NORM: Final = ("olmoe", "minimax_m2", "olmo2", "olmo3", "flex_olmo")
_QK_NORM: Final = ("qwen3", "qwen3_moe", "gemma3_text", "exaone4", "hunyuan_v1_dense", "dots1")
_QKV_BIAS: Final = ("qwen2", "qwen2_moe")
_BIAS_BUT_OUT: Final = ("glm4_moe", "glm4", "seed_oss")
"""Their `attention_bias` is not of the output projection."""


class AttentionKind(StrEnum):
    """How a layer remembers."""

    FULL = "full"
    SLIDING = "sliding"
    LATENT = "latent"
    """One compressed vector per token for all heads (MLA): not divided by tensor parallelism."""
    LINEAR = "linear"
    """A state of fixed size."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention.

    Attributes:
        parameters: weights, biases and norms inside it.
        score_width: sum over heads of (query/key width + value width): FLOPs per (token, context token) are 2x that.
        kv_elements: stored per token; 0 for LINEAR.
        kv_shards: in how many parts tensor parallelism can cut the KV (1 for LATENT).
        window: tokens that a SLIDING layer keeps.
        state_elements: of a LINEAR layer, per sequence.
    """

    kind: AttentionKind
    parameters: int
    score_width: int
    kv_elements: int
    kv_shards: int
    window: int | None = None
    state_elements: int = 0

    def kept(self, context: float) -> float:
        """Tokens whose KV a sequence of `context` tokens holds in this layer."""
        if self.kind is AttentionKind.LINEAR:
            return 0.0
        return min(context, self.window) if self.window else context


@dataclass(frozen=True, slots=True)
class Ffn:
    """One layer's FFN: `dense` parameters that every token uses (gate and shared experts included), and experts."""

    dense: int
    experts: int = 0
    per_token: int = 0
    expert_parameters: int = 0

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.dense + self.experts * self.expert_parameters

    def active_experts(self, tokens: float) -> float:
        """Distinct experts that `tokens` uniformly routed tokens use: E (1 - (1 - K/E)^tokens)."""
        return self.experts * (1 - math.pow(1 - self.per_token / self.experts, tokens)) if self.experts else 0.0


@dataclass(frozen=True, slots=True)
class Block:
    """`count` equal layers; `norms` are the parameters of their layer norms."""

    count: int
    attention: Attention
    ffn: Ffn
    norms: int


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Sizes of a model. `exact` says whether `parameters` is tested against transformers for this family.

    Cards of equal sizes are equal, whatever they are called: what the cost model says of one holds for all.
    """

    name: str = field(compare=False)
    family: str
    hidden: int
    vocabulary: int
    context_tokens: int
    blocks: tuple[Block, ...]
    embedding: int
    head: int
    final_norm: int
    exact: bool

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return sum(b.count for b in self.blocks)

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return sum(b.count for b in self.blocks if b.ffn.experts)

    @property
    def attention_parameters(self) -> int:
        """What an attention shard holds besides embedding and head: attention and norms of all layers."""
        return sum(b.count * (b.attention.parameters + b.norms) for b in self.blocks) + self.final_norm

    @property
    def dense_ffn_parameters(self) -> int:
        """FFN weights that every token uses."""
        return sum(b.count * b.ffn.dense for b in self.blocks)

    @property
    def expert_parameters(self) -> int:
        """All routed experts."""
        return sum(b.count * b.ffn.experts * b.ffn.expert_parameters for b in self.blocks)

    @property
    def parameters(self) -> int:
        """All weights, a tied head counted once."""
        return (
            self.embedding + self.head + self.attention_parameters + self.dense_ffn_parameters + self.expert_parameters
        )

    @property
    def active_parameters(self) -> int:
        """Weights that one token multiplies with (the embedding is a look-up; a tied head is multiplied)."""
        experts = sum(b.count * b.ffn.per_token * b.ffn.expert_parameters for b in self.blocks)
        return self.attention_parameters + self.dense_ffn_parameters + experts + self.hidden * self.vocabulary

    def kv_elements(self, context: float) -> float:
        """KV and state elements of one sequence of `context` tokens, over all layers, on one device."""
        return sum(
            b.count * (b.attention.kept(context) * b.attention.kv_elements + b.attention.state_elements)
            for b in self.blocks
        )

    def attention_flops(self, context: float) -> float:
        """FLOPs of scores and values for one token that sees `context` tokens, over all layers."""
        return sum(b.count * 2.0 * b.attention.score_width * b.attention.kept(context) for b in self.blocks)

    def prefill_flops(self, tokens: int, cached: int = 0) -> float:
        """FLOPs of a prompt of `tokens` of which `cached` are held already (causal: each sees half of the new ones)."""
        new = tokens - cached
        return 2.0 * self.active_parameters * new + new * self.attention_flops(cached + new / 2)


def read_card(config: Mapping[str, Any], name: str = "") -> ModelCard:
    """The card of a parsed `config.json` (its text model where it has several).

    Raises:
        InvalidArgumentError: a size is missing, or the file is not a decoder's.
    """
    text = config.get("text_config")
    c = _Config({**text, **_outer(config)} if isinstance(text, Mapping) else config)
    hidden, vocabulary = c.size("hidden_size"), c.size("vocab_size")
    tied = c.flag("tie_word_embeddings", c.family.startswith(_TIED))
    blocks: dict[tuple[Attention, Ffn, int], int] = {}
    for layer in range(c.size("num_hidden_layers")):
        key = (_attention(c, layer), _ffn(c, layer), _norms(c))
        blocks[key] = blocks.get(key, 0) + 1
    return ModelCard(
        name=name or str(config.get("_name_or_path") or c.family),
        family=c.family,
        hidden=hidden,
        vocabulary=vocabulary,
        context_tokens=c.size("max_position_embeddings", 1 << 17),
        blocks=tuple(Block(count, *key) for key, count in blocks.items()),
        embedding=hidden * vocabulary,
        head=0 if tied else hidden * vocabulary,
        final_norm=hidden,
        exact=c.family in EXACT,
    )


def _outer(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: config[k] for k in ("tie_word_embeddings",) if k in config}


class _Config:
    """A config with the defaults that checkpoints rely on."""

    def __init__(self, mapping: Mapping[str, Any]) -> None:
        self.mapping = mapping
        self.family = str(mapping.get("model_type", ""))

    def size(self, *keys: Any) -> int:
        """The first of `keys` that is set; an int among them is the default."""
        for key in keys:
            value = key if isinstance(key, int) else self.mapping.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value
        raise InvalidArgumentError(
            f"config.json: {keys[0]} is {self.mapping.get(keys[0])!r}; a whole number is needed to count the model",
            field=str(keys[0]),
        )

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.mapping.get(key)
        return default if value is None else bool(value)

    def items(self, key: str) -> tuple[Any, ...]:
        value = self.mapping.get(key)
        return tuple(value) if isinstance(value, list | tuple) else ()

    @property
    def heads(self) -> int:
        return self.size("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        return self.size("num_key_value_heads", self.heads)

    @property
    def head_size(self) -> int:
        default = _HEAD_SIZES.get(self.family)
        return self.size("head_dim", default if default else self.size("hidden_size") // self.heads)


def _layer_type(c: _Config, layer: int) -> str:
    types = c.items("layer_types")
    if types:
        return str(types[layer])
    if c.family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"):
        return "linear_attention" if (layer + 1) % c.size("full_attention_interval", 4) else "full_attention"
    if c.family == "gpt_oss":
        return "full_attention" if layer % 2 else "sliding_attention"
    if c.family == "gemma3_text":
        return "sliding_attention" if (layer + 1) % c.size("sliding_window_pattern", 6) else "full_attention"
    windowed = c.family in ("mistral", "ministral", "phi3") and c.mapping.get("sliding_window")
    return "sliding_attention" if windowed else "full_attention"


def _attention(c: _Config, layer: int) -> Attention:
    kind = _layer_type(c, layer)
    if kind == "linear_attention" and "linear_num_value_heads" in c.mapping:
        return _linear(c)
    if c.mapping.get("kv_lora_rank"):
        return _latent(c)
    h, heads, kv, d = c.size("hidden_size"), c.heads, c.kv_heads, c.head_size
    gated = c.family in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
    parameters = h * d * (heads * (2 if gated else 1) + 2 * kv) + heads * d * h
    if c.family in _QKV_BIAS:
        parameters += (heads + 2 * kv) * d
    elif c.flag("attention_bias", c.family in ("gpt_oss", "glm4", "seed_oss")):
        parameters += (heads + 2 * kv) * d
        parameters += h if c.flag("attention_out_bias", c.family not in _BIAS_BUT_OUT) else 0
    if c.family in _WIDE_QK_NORM:
        parameters += (heads + kv) * d
    elif c.family in _QK_NORM or gated or (c.flag("use_qk_norm") and c.family != "cohere"):
        parameters += 2 * d
    if c.family == "gpt_oss":
        parameters += heads  # attention sinks
    window = c.mapping.get("sliding_window") if kind == "sliding_attention" else None
    return Attention(
        AttentionKind.SLIDING if window else AttentionKind.FULL, parameters, 2 * heads * d, 2 * kv * d, kv, window
    )


def _latent(c: _Config) -> Attention:
    h, heads, rank = c.size("hidden_size"), c.heads, c.size("kv_lora_rank")
    nope, rope, value = c.size("qk_nope_head_dim", 128), c.size("qk_rope_head_dim", 64), c.size("v_head_dim", 128)
    query_rank = c.mapping.get("q_lora_rank")
    bias = c.flag("attention_bias")
    if query_rank:
        query = h * query_rank + query_rank + query_rank * heads * (nope + rope) + (query_rank if bias else 0)
    else:
        query = h * heads * (nope + rope)
    shared = h * (rank + rope) + rank + (rank + rope + h if bias else 0)
    parameters = query + shared + rank * heads * (nope + value) + heads * value * h
    # Decoding absorbs the up-projection: scores and values are taken in the compressed space.
    return Attention(AttentionKind.LATENT, parameters, heads * (2 * rank + rope), rank + rope, 1)


def _linear(c: _Config) -> Attention:
    h = c.size("hidden_size")
    key_heads, value_heads = c.size("linear_num_key_heads"), c.size("linear_num_value_heads")
    key_size, value_size = c.size("linear_key_head_dim"), c.size("linear_value_head_dim")
    keys, values = key_heads * key_size, value_heads * value_size
    kernel = c.size("linear_conv_kernel_dim", 4)
    mixed = 2 * keys + values
    projections = h * (mixed + values + 2 * value_heads) + values * h
    parameters = projections + mixed * kernel + 2 * value_heads + value_size
    state = value_heads * key_size * value_size + mixed * kernel
    return Attention(AttentionKind.LINEAR, parameters, 0, 0, value_heads, None, state)


def _ffn(c: _Config, layer: int) -> Ffn:
    h = c.size("hidden_size")
    experts = c.size("num_local_experts", "n_routed_experts", "num_experts", 0)
    if not experts or not _is_moe(c, layer):
        inner = c.size("intermediate_size")
        return Ffn(3 * h * inner + (2 * inner + h if c.flag("mlp_bias") else 0))
    inner = c.size("moe_intermediate_size", "intermediate_size")
    chosen = c.size("num_experts_per_tok", "num_experts_per_token", "moe_top_k", 2)
    dense, expert = h * experts, 3 * h * inner
    if c.family == "gpt_oss":
        dense, expert = dense + experts, expert + 2 * inner + h
    shared = c.size("shared_expert_intermediate_size", 0) or inner * c.size("n_shared_experts", 0)
    gate = h if c.size("shared_expert_intermediate_size", 0) else 0
    return Ffn(dense + 3 * h * shared + gate, experts, chosen, expert)


def _is_moe(c: _Config, layer: int) -> bool:
    if layer in c.items("mlp_only_layers") or layer < c.size("first_k_dense_replace", 0):
        return False
    if "moe_layer_freq" in c.mapping and isinstance(c.mapping["moe_layer_freq"], int):
        return layer % c.size("moe_layer_freq") == 0
    return (layer + 1) % max(1, c.size("decoder_sparse_step", 1)) == 0


def _norms(c: _Config) -> int:
    norms = {"gemma3_text": 4, "gemma2": 4, "glm4": 4, "cohere": 1, "cohere2": 1}.get(c.family, 2)
    return c.size("hidden_size") * norms


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """Configs of well-known models by name: enough of each to make its card without its weights."""
    models: Mapping[str, Mapping[str, Any]] = json.loads(
        resources.files(__package__).joinpath("models.json").read_text()
    )["models"]
    return models
