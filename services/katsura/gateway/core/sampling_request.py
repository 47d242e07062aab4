"""How an answer is to be drawn: the fields that chat completions and responses share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from katsura.gateway.core.fields import Fields, kind_of, number_of, refuse

TOKENS_MAX = 2**31 - 1
SEED_MAX = 2**63 - 1
VOCABULARY_MAX = 2**31 - 1
_ID_DIGITS_MAX = len(str(VOCABULARY_MAX))
TOP_LOGPROBS_MAX = 20
CHOICES_MAX = 16
STOP_MAX = 16
STOP_CHARS_MAX = 256


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the fields mean what they mean in OpenAI's API.

    Attributes:
        seed: None lets the gateway draw one.
        top_k: how many of the likeliest tokens stay, 0 for all (an extension that vLLM has too).
        top_logprobs: alternatives to report per token; -1 reports no log-probabilities.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = -1


def read_sampling(body: Fields, top_logprobs: int) -> Sampling:
    """Take the sampling fields off `body`; `top_logprobs` was read before, its fields differ between the APIs."""
    temperature, top_p = body.number("temperature", 0, 2), body.number("top_p", 0, 1)
    if top_p == 0:
        refuse(body.path("top_p"), "expected more than 0 and at most 1, got 0; use temperature 0 for greedy answers")
    return Sampling(
        temperature=1.0 if temperature is None else temperature,
        top_p=top_p or 1.0,
        top_k=body.integer("top_k", 0, VOCABULARY_MAX) or 0,
        seed=body.integer("seed", -SEED_MAX - 1, SEED_MAX),
        presence_penalty=body.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=body.number("frequency_penalty", -2, 2) or 0.0,
        logit_bias=_logit_bias(body),
        top_logprobs=top_logprobs,
    )


def _logit_bias(body: Fields) -> dict[int, float]:
    value, path = body.take("logit_bias"), body.path("logit_bias")
    if value is None:
        return {}
    if not isinstance(value, dict):
        refuse(path, f"expected an object of token ids, got {kind_of(value)}")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= _ID_DIGITS_MAX and int(key) <= VOCABULARY_MAX):
            refuse(f"{path}.{key}", "expected a token id as the key")
        biases[int(key)] = number_of(bias, f"{path}.{key}", -100, 100)
    return biases
