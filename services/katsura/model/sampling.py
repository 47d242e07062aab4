"""From a row of logits to a token.

Every function looks at one row only, so a batch changes nothing. Draws are counter-based: the uniform number of a
token is BLAKE2b of (seed, choice, position), so a generation that is replayed, moved to another shard or resumed in
the middle draws the same numbers, and no generator state exists.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
from torch import Tensor

from katsura.domain.errors import InvalidArgumentError

TOP_LOGPROBS_MAX = 20
"""Most alternatives a token reports (the OpenAI limit)."""
_HEAD = 512
"""Tokens looked at before all of the vocabulary is sorted: top-p rarely needs more."""
_SEED_LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn; the names and ranges are OpenAI's, `top_k` is vLLM's.

    Attributes:
        temperature: 0 takes the most probable token; otherwise logits are divided by it.
        top_p: smallest set of most probable tokens with at least this mass.
        top_k: this many most probable tokens, 0 for all.
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted once from the logit of each token that was generated.
        seed: of the counter-based draw.
        top_logprobs: most probable alternatives to report per token; None reports no log-probabilities at all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 2.0)
        _within("top_p", self.top_p, 0.0, 1.0)
        _within("top_k", self.top_k, 0, 1 << 31)
        _within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _within("seed", self.seed, -_SEED_LIMIT, _SEED_LIMIT - 1)
        _within("top_logprobs", self.top_logprobs or 0, 0, TOP_LOGPROBS_MAX)

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether the tokens generated so far matter."""
        return self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token; where asked for, its log-probability and those of the most probable tokens, in falling order.

    Log-probabilities are the model's own, before temperature, penalties and cuts.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = field(default=())


def uniform(seed: int, choice: int, position: int) -> float:
    """The number in [0, 1), a multiple of 2**-53, of token `position` of choice `choice` (`n` > 1) under `seed`."""
    counter = struct.pack("<qIQ", seed, choice, position)
    digest = blake2b(counter, digest_size=8, person=b"katsura-draw").digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def sample(
    logits: Tensor, params: SamplingParams, *, choice: int, position: int, generated: Mapping[int, int] | None = None
) -> Sampled:
    """Pick a token.

    Args:
        logits: f32 `[vocab]`; not changed.
        params: how.
        choice: index of this completion among the `n` of a request.
        position: of the token in its sequence, prompt included.
        generated: how often each token was generated so far; needed for penalties only.
    """
    scores = _penalised(logits, params, generated or {}) if params.penalised else logits
    token = int(scores.argmax()) if params.greedy else _draw(scores, params, uniform(params.seed, choice, position))
    return with_logprobs(logits, token, params.top_logprobs)


def greedy(logits: Tensor) -> list[int]:
    """The most probable token of each row of `[rows, vocab]`."""
    tokens: list[int] = logits.argmax(-1).tolist()
    return tokens


def with_logprobs(logits: Tensor, token: int, top: int | None) -> Sampled:
    """`token` with the log-probabilities that were asked for."""
    if top is None:
        return Sampled(token)
    total = torch.logsumexp(logits, -1)
    values, ids = torch.topk(logits, top)
    alternatives = tuple(zip(ids.tolist(), (values - total).tolist(), strict=True))
    return Sampled(token, float(logits[token] - total), alternatives)


def _penalised(logits: Tensor, params: SamplingParams, generated: Mapping[int, int]) -> Tensor:
    scores = logits.clone()
    if generated:
        ids = torch.tensor(list(generated), dtype=torch.int64, device=logits.device)
        counts = torch.tensor(list(generated.values()), dtype=torch.float32, device=logits.device)
        scores[ids] -= params.frequency_penalty * counts + params.presence_penalty
    return scores


def _draw(scores: Tensor, params: SamplingParams, u: float) -> int:
    """Invert the cumulative distribution, in f64 so that a vocabulary's rounding cannot move the mass."""
    scaled = scores.double().div_(params.temperature)
    limit = params.top_k or scaled.shape[0]
    if params.top_p >= 1.0 and limit >= scaled.shape[0]:
        return _invert(torch.softmax(scaled, -1).cumsum(-1), u)
    total = torch.logsumexp(scaled, -1)
    values, ids = torch.topk(scaled, min(limit, _HEAD, scaled.shape[0]))
    if limit > _HEAD and float((values - total).exp_().sum()) < params.top_p:
        values, ids = torch.topk(scaled, min(limit, scaled.shape[0]))
    if params.top_k:
        total = torch.logsumexp(values, -1)
    mass = (values - total).exp_().cumsum(-1)
    kept = min(int((mass < params.top_p).sum()) + 1, mass.shape[0])
    return int(ids[_invert(mass[:kept], u)])


def _invert(mass: Tensor, u: float) -> int:
    return min(int(torch.searchsorted(mass, u * float(mass[-1]), right=True)), mass.shape[0] - 1)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} is {value}; it must be between {low} and {high}", field=name)
