"""Log-probabilities in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from katsura.gateway.core.choice import Drawn

LOGPROB_MIN = -9999.0
"""JSON has no infinity; OpenAI's API uses this for tokens that cannot be drawn."""


def entries(tokens: Sequence[Drawn], bytes_of: Callable[[int], bytes]) -> list[dict[str, object]]:
    """One entry per token; `bytes_of` gives the bytes that an id stands for."""

    def entry(token_id: int, logprob: float) -> dict[str, object]:
        raw = bytes_of(token_id)
        return {"token": raw.decode(errors="replace"), "logprob": max(logprob, LOGPROB_MIN), "bytes": list(raw)}

    return [
        entry(token.token_id, LOGPROB_MIN if token.logprob is None else token.logprob)
        | {"top_logprobs": [entry(other, logprob) for other, logprob in token.alternatives]}
        for token in tokens
    ]
