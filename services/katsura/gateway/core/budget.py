"""How many tokens an answer may have, and how many a prompt may take."""

from __future__ import annotations

from katsura.domain.errors import InvalidArgumentError, OutOfRangeError, Reason

ANSWER_SHARE = 4
"""Where the client sets no limit, a quarter of the context is kept free for the answer."""


def answer_reserve(context_tokens: int, max_new_tokens: int | None) -> int:
    """Tokens that assembly keeps free for the answer.

    Raises:
        InvalidArgumentError: the answer asked for fills the whole context.
    """
    if max_new_tokens is not None and max_new_tokens >= context_tokens:
        raise InvalidArgumentError(
            f"max_tokens: {max_new_tokens} leaves no room for a prompt in a context of {context_tokens} tokens",
            field="max_tokens",
            reason=Reason.CONTEXT_TOO_LONG,
        )
    return context_tokens // ANSWER_SHARE if max_new_tokens is None else max_new_tokens


def answer_limit(context_tokens: int, prompt_tokens: int, max_new_tokens: int | None) -> int:
    """Most tokens of one answer after a prompt of `prompt_tokens`.

    Raises:
        OutOfRangeError: CONTEXT_TOO_LONG, prompt and answer do not fit.
    """
    room = context_tokens - prompt_tokens
    wanted = max_new_tokens or 1
    if room < wanted:
        asked = f" and {max_new_tokens} for the answer" if max_new_tokens else ""
        raise OutOfRangeError(
            f"this model's context holds {context_tokens} tokens; the messages take {prompt_tokens}{asked}. Shorten "
            "the messages or lower max_tokens.",
            field="messages",
            reason=Reason.CONTEXT_TOO_LONG,
        )
    return max_new_tokens or room
