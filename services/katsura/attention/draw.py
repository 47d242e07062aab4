"""From the logits of a step to one token per drawing sequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from katsura.attention.messages import Sampling
from katsura.domain.errors import InternalError, InvalidArgumentError, KatsuraError
from katsura.model.sampling import Sampled, SamplingParams, greedy, sample, with_logprobs


@dataclass(slots=True)
class Drawer:
    """How one answer is drawn, and what was drawn so far as far as it matters. `trace`: whom its steps belong to."""

    params: SamplingParams
    choice: int
    bias: tuple[Tensor, Tensor] | None
    trace: str = ""
    generated: Counter[int] = field(default_factory=Counter)

    @property
    def plain(self) -> bool:
        """Whether the token is the largest logit and nothing more is reported."""
        return self.params.greedy and not self.params.penalised and self.params.top_logprobs is None and not self.bias

    def draw(self, logits: Tensor, position: int) -> Sampled:
        """The token at `position` of the sequence, from its row of logits."""
        scores = logits if self.bias is None else logits.index_add(0, *self.bias)
        token = sample(scores, self.params, choice=self.choice, position=position, generated=self.generated).token
        return with_logprobs(logits, token, self.params.top_logprobs)


def make_drawer(sampling: Sampling, choice: int, drawn: Sequence[int], vocab_size: int, trace: str = "") -> Drawer:
    """The drawer of choice `choice`, which has drawn `drawn` already. Raises InvalidArgumentError."""
    if sampling.bias_ids and not 0 <= min(sampling.bias_ids) <= max(sampling.bias_ids) < vocab_size:
        raise InvalidArgumentError(
            f"logit_bias: ids of this model are 0 to {vocab_size - 1}", field="sampling.logit_bias"
        )
    params = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        seed=sampling.seed,
        top_logprobs=None if sampling.top_logprobs < 0 else sampling.top_logprobs,
    )
    bias = None
    if sampling.bias_ids:
        bias = (torch.tensor(sampling.bias_ids), torch.tensor(sampling.bias_values, dtype=torch.float32))
    return Drawer(params, choice, bias, trace, Counter(drawn))


def draw_all(
    logits: Tensor, sequence_ids: Sequence[str], positions: Sequence[int], drawers: Mapping[str, Drawer]
) -> tuple[dict[str, Sampled], dict[str, KatsuraError]]:
    """Draw for each row of `logits` f32 `[rows, vocab]`; rows that are not numbers are errors, never tokens."""
    drawn: dict[str, Sampled] = {}
    broken: dict[str, KatsuraError] = {}
    likeliest = greedy(logits)
    finite = torch.isfinite(logits.sum(-1)).tolist()
    for row, (name, position) in enumerate(zip(sequence_ids, positions, strict=True)):
        drawer = drawers[name]
        if not finite[row]:
            broken[name] = InternalError("the model computed something that is no number; the answer cannot go on")
            continue
        drawn[name] = Sampled(likeliest[row]) if drawer.plain else drawer.draw(logits[row], position)
        if drawer.params.penalised:
            drawer.generated[drawn[name].token] += 1
    return drawn, broken
