"""The default estimate of rendered tokens, for nodes that carry no ids of the tokenizer in question.

Byte-pair tokenizers give English about 4 bytes a token, code and JSON about 3: dividing by 3 errs on the long side, so
that a budget kept by estimates is seldom overrun by the real ids.
"""

from __future__ import annotations

from typing import Final

from katsura.domain.trees import Step

BYTES_PER_TOKEN: Final = 3
MESSAGE_TOKENS: Final = 4
"""What a template adds around one message: role and separators."""


def estimate(text: str) -> int:
    """Rendered tokens of a message that says `text`."""
    return MESSAGE_TOKENS + -(-len(text.encode()) // BYTES_PER_TOKEN)


def estimate_step(step: Step) -> int:
    """Rendered tokens of a step, with its tool call."""
    if step.tool_call is None:
        return estimate(step.content)
    return estimate(step.content + step.tool_call.call_id + step.tool_call.name + step.tool_call.arguments_json)
