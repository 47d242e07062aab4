"""The default estimate."""

from __future__ import annotations

from katsura.domain.trees import Step, ToolCall
from katsura.memory.core.tokens import MESSAGE_TOKENS, estimate, estimate_step


def test_the_estimate_counts_bytes_not_characters() -> None:
    assert estimate("") == MESSAGE_TOKENS
    assert estimate("abc") == MESSAGE_TOKENS + 1
    assert estimate("\U0001f332" * 3) == MESSAGE_TOKENS + 4


def test_a_tool_call_counts() -> None:
    assert estimate_step(Step("", tool_call=ToolCall("i", "n", '{"a": 1}'))) > estimate_step(Step(""))
