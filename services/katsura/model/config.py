"""What `config.json` says about a model, checked and typed.

`parse_config` understands the keys of published checkpoints (`rope_theta`, `rope_scaling`) and those that
transformers 5 writes (`rope_parameters`). An option that changes the arithmetic and that we do not implement is
refused by name: a model that loads is a model that is computed right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from katsura.domain.errors import InvalidArgumentError, Reason
from katsura.domain.shape import DType, ModelShape


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's stretch of low rotary frequencies to contexts beyond `original_context` positions."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base frequency `theta` and, where given, its scaling."""

    theta: float
    scaling: Llama3Scaling | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """All that the math needs besides tensors.

    Attributes:
        shape: sizes.
        norm_eps: epsilon of every RMS norm.
        rope: rotary embedding.
        tied_embeddings: `lm_head` is the embedding.
        renormalise_top_k: MoE only: the weights of the chosen experts are scaled to sum to one.
        bos_id: first token of a prompt, where the model has one.
        eos_ids: tokens that end a generation.
        stored_dtype: dtype the checkpoint says it was saved in, where it is one that we serve.
    """

    shape: ModelShape
    norm_eps: float
    rope: RopeConfig
    tied_embeddings: bool
    renormalise_top_k: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    stored_dtype: DType | None


_FAMILIES = ("llama", "mixtral")
_DTYPES = {"float32": DType.F32, "bfloat16": DType.BF16}


def parse_config(mapping: Mapping[str, object]) -> ModelConfig:
    """The typed form of a parsed `config.json`.

    Raises:
        InvalidArgumentError: a key is missing, malformed, or asks for arithmetic that we do not implement; `field`
            names the key.
    """
    family = mapping.get("model_type")
    if family not in _FAMILIES:
        raise _unsupported("model_type", family, f"the served families are {', '.join(_FAMILIES)}")
    _refuse_unsupported(mapping)
    shape = _shape(mapping, str(family))
    eos = mapping.get("eos_token_id")
    eos_ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    bos = mapping.get("bos_token_id")
    return ModelConfig(
        shape=shape,
        norm_eps=_number(mapping, "rms_norm_eps", 1e-5 if shape.is_moe else 1e-6),
        rope=_rope(mapping, 1e6 if shape.is_moe else 1e4),
        tied_embeddings=bool(mapping.get("tie_word_embeddings", False)),
        renormalise_top_k=shape.is_moe,
        bos_id=bos if isinstance(bos, int) else None,
        eos_ids=tuple(_token_id(value) for value in eos_ids),
        stored_dtype=_DTYPES.get(str(mapping.get("dtype", mapping.get("torch_dtype")))),
    )


def _shape(mapping: Mapping[str, object], family: str) -> ModelShape:
    hidden, heads = _size(mapping, "hidden_size"), _size(mapping, "num_attention_heads")
    kv_heads = _size(mapping, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise _malformed("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads ({heads})")
    if mapping.get("head_dim") is None and hidden % heads:
        raise _malformed("hidden_size", hidden, f"a multiple of num_attention_heads ({heads})")
    head_size = _size(mapping, "head_dim", hidden // heads)
    if head_size % 2:
        raise _malformed("head_dim", head_size, "even: RoPE rotates pairs")
    moe = family == "mixtral"
    experts = _size(mapping, "num_local_experts", 8) if moe else 0
    chosen = _size(mapping, "num_experts_per_tok", 2) if moe else 0
    if chosen > experts:
        raise _malformed("num_experts_per_tok", chosen, f"at most num_local_experts ({experts})")
    return ModelShape(
        family=family,
        layer_count=_size(mapping, "num_hidden_layers"),
        hidden_size=hidden,
        head_count=heads,
        kv_head_count=kv_heads,
        head_size=head_size,
        ffn_size=_size(mapping, "intermediate_size"),
        expert_count=experts,
        experts_per_token=chosen,
        vocab_size=_size(mapping, "vocab_size"),
        context_length=_size(mapping, "max_position_embeddings", 131072 if moe else 2048),
    )


def _refuse_unsupported(mapping: Mapping[str, object]) -> None:
    """Refuse every option that would change the arithmetic, unless it is at its neutral value."""
    neutral: dict[str, tuple[object, ...]] = {
        "hidden_act": (None, "silu"),
        "attention_bias": (None, False),
        "mlp_bias": (None, False),
        "sliding_window": (None,),
        "partial_rotary_factor": (None, 1.0),
        "quantization_config": (None,),
        "is_encoder_decoder": (None, False),
    }
    for key, allowed in neutral.items():
        if mapping.get(key) not in allowed:
            raise _unsupported(
                key, mapping[key], "only " + " or ".join(repr(value) for value in allowed[1:] or (None,))
            )


def _rope(mapping: Mapping[str, object], default_theta: float) -> RopeConfig:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (published checkpoints)."""
    field = "rope_parameters" if mapping.get("rope_parameters") is not None else "rope_scaling"
    rope = mapping.get(field)
    if rope is None:
        return RopeConfig(_number(mapping, "rope_theta", default_theta))
    if not isinstance(rope, Mapping):
        raise _malformed(field, rope, "an object")
    merged = {"rope_theta": mapping.get("rope_theta"), **rope}
    theta = _number(merged, "rope_theta", default_theta, field)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if _number(rope, "partial_rotary_factor", 1.0, field) != 1.0:
        raise _unsupported(f"{field}.partial_rotary_factor", rope["partial_rotary_factor"], "only 1.0")
    if kind == "default":
        return RopeConfig(theta)
    if kind != "llama3":
        raise _unsupported(f"{field}.rope_type", kind, "only 'default' and 'llama3'")
    scaling = Llama3Scaling(
        factor=_number(rope, "factor", None, field),
        low_frequency_factor=_number(rope, "low_freq_factor", None, field),
        high_frequency_factor=_number(rope, "high_freq_factor", None, field),
        original_context=int(_number(rope, "original_max_position_embeddings", None, field)),
    )
    if scaling.high_frequency_factor <= scaling.low_frequency_factor:
        raise _malformed(f"{field}.high_freq_factor", scaling.high_frequency_factor, "above low_freq_factor")
    return RopeConfig(theta, scaling)


def _size(mapping: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = mapping.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _malformed(key, value, "a positive integer")
    return value


def _number(mapping: Mapping[str, object], key: str, default: float | None, prefix: str = "") -> float:
    value = mapping.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise _malformed(f"{prefix}.{key}" if prefix else key, value, "a positive number")
    return float(value)


def _token_id(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _malformed("eos_token_id", value, "a token id or a list of token ids")
    return value


def _malformed(field: str, value: object, wanted: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"config.json: {field} is {value!r}; it must be {wanted}", field=field)


def _unsupported(field: str, value: object, served: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"config.json: {field} is {value!r}, which is not implemented: {served}",
        reason=Reason.UNSUPPORTED_FIELD,
        field=field,
    )
