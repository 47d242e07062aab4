"""How many tokens an answer may have, and how many a prompt may take."""

from __future__ import annotations

from dataclasses import dataclass

from katsura.domain.errors import InvalidArgumentError, OutOfRangeError, Reason

ANSWER_SHARE = 4
"""Where the client sets no limit, a quarter of the context is kept free for the answer."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The most tokens a client wants, None for what the context leaves; and how its API calls the fields."""

    max_new_tokens: int | None
    field: str = "max_tokens"
    input_field: str = "messages"


def answer_reserve(context_tokens: int, limit: Limit) -> int:
    """Tokens that assembly keeps free for the answer.

    Raises:
        InvalidArgumentError: the answer asked for fills the whole context.
    """
    wanted = limit.max_new_tokens
    if wanted is not None and wanted >= context_tokens:
        raise InvalidArgumentError(
            f"{limit.field}: {wanted} leaves no room for a prompt in a context of {context_tokens} tokens",
            field=limit.field,
            reason=Reason.CONTEXT_TOO_LONG,
        )
    return context_tokens // ANSWER_SHARE if wanted is None else wanted


def answer_limit(context_tokens: int, prompt_tokens: int, limit: Limit) -> int:
    """Most tokens of one answer after a prompt of `prompt_tokens`.

    Raises:
        OutOfRangeError: CONTEXT_TOO_LONG, prompt and answer do not fit.
    """
    wanted, room = limit.max_new_tokens, context_tokens - prompt_tokens
    if room < (wanted or 1):
        asked = f" and {wanted} for the answer" if wanted else ""
        raise OutOfRangeError(
            f"this model's context holds {context_tokens} tokens; the {limit.input_field} take {prompt_tokens}{asked}. "
            f"Shorten them or lower {limit.field}.",
            field=limit.input_field,
            reason=Reason.CONTEXT_TOO_LONG,
        )
    return wanted or room
