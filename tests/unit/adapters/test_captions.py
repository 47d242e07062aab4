"""What a person reads of a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from katsura.adapters.captions import CAPTION_CHARS_MAX, caption


@pytest.mark.parametrize(
    ("metadata", "values", "said"),
    [
        ({"source": "loop", "step": 2}, {"log": ["a", "too dear"], "plan": []}, "step 2: log … too dear, plan []"),
        ({"source": "input", "step": -1}, {"__start__": {"plan": []}}, "input"),
        ({"source": "update", "step": 3}, {"n": 3, "branch:to:x": None, "on": True}, "update: n 3, on True"),
        ({"source": "loop", "step": 1}, {"said": [HumanMessage("Hello\n you")]}, "step 1: said human: Hello you"),
        (
            {"source": "loop", "step": 1},
            {"messages": [AIMessage("", tool_calls=[{"name": "search", "args": {}, "id": "1"}])]},
            "step 1: messages ai: search()",
        ),
        ({}, {"odd": object(), "map": {"a": 1}}, "checkpoint: map {a}, odd object"),
    ],
)  # fmt: skip
def test_a_caption_says_what_changed(metadata: dict[str, Any], values: dict[str, Any], said: str) -> None:
    assert caption(metadata, values, values) == said


def test_a_caption_is_short_whatever_the_values_and_names_only_what_changed() -> None:
    values = {f"channel{n}": "word " * 100_000 for n in range(50)}
    assert len(caption({"source": "loop", "step": 1}, values, values)) == CAPTION_CHARS_MAX
    assert caption({"source": "loop", "step": 1}, values, ["gone"]) == "step 1"
