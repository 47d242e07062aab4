from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError, Reason
from katsura.domain.shape import DType, ModelShape
from katsura.model.config import Llama3Scaling, RopeConfig, parse_config

SMOL = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_published_llama_is_read():
    config = parse_config(SMOL)
    assert config.shape == ModelShape("llama", 30, 576, 9, 3, 64, 1536, 0, 0, 49152, 8192)
    assert config.rope == RopeConfig(100000.0)
    assert (config.norm_eps, config.tied_embeddings, config.stored_dtype) == (1e-5, True, DType.BF16)
    assert (config.bos_id, config.eos_ids) == (1, (2,))


def test_what_transformers_5_writes_is_read(tiny):
    theta = tiny.raw["rope_parameters"]["rope_theta"]
    assert tiny.config.rope.theta == theta
    assert tiny.config.shape.vocab_size == 199
    assert tiny.config.shape.is_moe == (tiny.raw["model_type"] == "mixtral")


def test_both_ways_to_write_llama3_scaling_are_read():
    wanted = RopeConfig(5e5, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    published = SMOL | {"rope_theta": 5e5, "rope_scaling": SCALING}
    written = {k: v for k, v in SMOL.items() if k != "rope_theta"} | {"rope_parameters": SCALING | {"rope_theta": 5e5}}
    assert parse_config(published).rope == wanted
    assert parse_config(written).rope == wanted


def test_several_end_tokens_are_kept():
    assert parse_config(SMOL | {"eos_token_id": [128001, 128009]}).eos_ids == (128001, 128009)
    assert parse_config(SMOL | {"eos_token_id": None}).eos_ids == ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt2"),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_arithmetic_that_we_do_not_have_is_refused_by_name(field, value):
    with pytest.raises(InvalidArgumentError, match=field) as caught:
        parse_config(SMOL | {field: value})
    assert caught.value.field == field
    assert caught.value.reason is Reason.UNSUPPORTED_FIELD


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor",
        ),
        ({"rope_scaling": SCALING | {"factor": None}}, "rope_scaling.factor"),
        ({"rope_scaling": SCALING | {"high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": 3}, "rope_scaling"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 577}, "hidden_size"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"head_dim": 63}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok"),
    ],
)
def test_a_malformed_config_names_its_key(change, field):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_config(SMOL | change)
    assert caught.value.field == field
    assert field in caught.value.message
