from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.card import EXACT, AttentionKind, read_card

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    "moe_intermediate_size": 32,
    "kv_lora_rank": 24,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "num_key_value_heads": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 2,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 40,
}
DENSE = (
    *("ministral", "phi3", "granite", "smollm3", "helium", "ernie4_5", "seed_oss", "hunyuan_v1_dense", "exaone4"),
    *("olmo2", "olmo3", "cohere", "cohere2", "glm4", "gemma", "gemma2"),
)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 32}),
    *((family, {}) for family in DENSE),
    ("seed_oss", {"attention_out_bias": True}),
    ("glm4", {"attention_bias": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("gemma3_text", {}),
    ("mixtral", EXPERTS),
    (
        "qwen2_moe",
        {
            **EXPERTS,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
            "decoder_sparse_step": 2,
        },
    ),
    ("qwen3_moe", {**EXPERTS, "moe_intermediate_size": 32, "mlp_only_layers": [0]}),
    ("olmoe", EXPERTS),
    ("flex_olmo", EXPERTS),
    ("dots1", {**EXPERTS, "moe_intermediate_size": 32, "n_shared_experts": 2, "first_k_dense_replace": 1}),
    ("deepseek_v2", {**EXPERTS, **LATENT, "q_lora_rank": None}),
    ("deepseek_v3", {**EXPERTS, **LATENT}),
    ("glm4_moe_lite", {**EXPERTS, **LATENT}),
    ("gpt_oss", EXPERTS),
    ("granitemoe", EXPERTS),
    ("minimax_m2", EXPERTS),
    (
        "glm4_moe",
        {
            **EXPERTS,
            "moe_intermediate_size": 32,
            "attention_bias": True,
            "use_qk_norm": True,
            "first_k_dense_replace": 2,
        },
    ),
    ("qwen3_next", {**EXPERTS, "moe_intermediate_size": 32, **LINEAR}),
    ("qwen3_5_text", LINEAR),
    ("qwen3_5_moe_text", {**EXPERTS, "moe_intermediate_size": 32, **LINEAR}),
]


@pytest.mark.parametrize(("family", "fields"), CASES, ids=[f"{f}-{i}" for i, (f, _) in enumerate(CASES)])
def test_a_card_counts_the_parameters_that_transformers_makes(family: str, fields: dict[str, Any]) -> None:
    config = AutoConfig.for_model(family, **{**SMALL, **fields})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    card = read_card(config.to_dict())
    assert card.exact
    assert card.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("family", DENSE)
def test_what_a_checkpoint_leaves_out_of_its_config_is_known(family: str) -> None:
    said = (
        {"head_dim"} if family in ("ministral", "hunyuan_v1_dense", "helium") else set()
    )  # no default, or one for its own size
    config = AutoConfig.for_model(family, **{k: v for k, v in SMALL.items() if k in said or k != "head_dim"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    card = read_card({**config.to_diff_dict(), "model_type": family})
    assert card.parameters == sum(p.numel() for p in model.parameters())


def test_every_family_that_is_called_exact_is_compared() -> None:
    assert {family for family, _ in CASES} == EXACT


def test_sizes_of_published_models_come_from_their_config_alone() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    }
    card = read_card(llama)
    assert card.parameters == 70_553_706_496
    assert card.kv_elements(1) == 80 * 2 * 8 * 128


def test_mla_keeps_one_compressed_vector_per_token_and_layer() -> None:
    config = AutoConfig.for_model("deepseek_v3", **{**SMALL, **EXPERTS, **LATENT}).to_dict()
    card = read_card(config)
    assert card.kv_elements(10) == 5 * (24 + 8) * 10
    assert all(b.attention.kind is AttentionKind.LATENT and b.attention.kv_shards == 1 for b in card.blocks)
    assert card.moe_layers == 4


def test_a_window_bounds_what_a_sequence_holds() -> None:
    card = read_card(AutoConfig.for_model("gemma3_text", **{**SMALL, "sliding_window": 32}).to_dict())
    assert card.kv_elements(10_000) < card.kv_elements(32) + 10_000 * 2 * 2 * 16
    assert read_card({**SMALL, "model_type": "mistral", "sliding_window": 32}).kv_elements(500) == 5 * 2 * 2 * 16 * 32


def test_a_linear_layer_holds_a_state_of_fixed_size() -> None:
    card = read_card({**SMALL, **LINEAR, "model_type": "qwen3_5_text"})
    per_token = 1 * 2 * 2 * 16  # one of five layers attends in full
    assert card.kv_elements(2000) - card.kv_elements(1000) == 1000 * per_token


def test_active_experts_grow_from_k_to_all() -> None:
    ffn = next(b.ffn for b in read_card({**SMALL, **EXPERTS, "model_type": "mixtral"}).blocks)
    assert ffn.active_experts(1) == pytest.approx(2)
    assert ffn.active_experts(1000) == pytest.approx(8)


def test_an_unknown_family_is_read_by_field_names_and_marked() -> None:
    assert not read_card({**SMALL, "model_type": "somebody_elses"}).exact


def test_a_config_without_sizes_is_refused_by_the_name_of_the_field() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        read_card({"model_type": "llama", "hidden_size": 8})
    assert caught.value.field == "vocab_size"
