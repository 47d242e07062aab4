"""Recall over the in-memory store: summaries, roll-ups, steps."""

from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import TenantId, TreeId
from katsura.domain.trees import Step, TreePolicy
from katsura.memory.operations import Write
from katsura.memory.service import Memory
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_twin import TwinTreeStore

REF = TreeRef(TenantId("acme"), TreeId("tree"))
WRITE = Write("", REF, "", None, True)


async def memory_of(subgoals: int, fanout: int = 1) -> Memory:
    """Each subgoal tells of one hotel in three steps; only the middle one tells its colour."""
    memory = Memory(TwinTreeStore(Limits()), lambda: "fresh", heartbeat_s=5.0)
    await memory.create_tree(REF.tenant, "", "tree", "goal", (), TreePolicy(rollup_fanout=fanout), {})
    for i in range(subgoals):
        texts = (
            f"Look at hotel H-{100 + i}.",
            f"It is painted in colour number {i}.",
            f"H-{100 + i} costs {200 + i} USD.",
        )
        await memory.grow(WRITE, [Step(text) for text in texts], True)
        await memory.compress(WRITE, 0, None, "", (), False)
    return memory


async def test_what_a_summary_left_out_is_found_under_it() -> None:
    memory = await memory_of(12)
    found = await memory.recall(REF, "", "which colour is H-105", 1000, 1)
    assert len(found.chosen) == 1
    assert "It is painted in colour number 5." in [s.content for s in found.segments]
    assert not any("H-104" in s.content for s in found.segments)


async def test_recall_descends_through_roll_ups() -> None:
    memory = await memory_of(40, fanout=2)
    found = await memory.recall(REF, "", "H-103 colour", 1000, 2)
    assert "It is painted in colour number 3." in [s.content for s in found.segments]


async def test_the_budget_is_kept_and_what_did_not_fit_is_told() -> None:
    memory = await memory_of(4)
    whole = await memory.recall(REF, "", "H-101 colour costs", 1000, 1)
    tight = await memory.recall(REF, "", "H-101 colour costs", whole.total_tokens - 1, 1)
    assert tight.total_tokens < whole.total_tokens
    assert len(tight.segments) + len(tight.dropped) == len(whole.segments)
    assert await memory.recall(REF, "", "H-101 colour costs", 1000, 1) == whole


async def test_nothing_found_is_no_error_and_a_question_without_words_is() -> None:
    memory = await memory_of(2)
    found = await memory.recall(REF, "", "zebra", 100, 0)
    assert (found.segments, found.chosen, found.total_tokens) == ((), (), 0)
    for query, budget in (("?!", 10), ("hotel", 0)):
        with pytest.raises(InvalidArgumentError):
            await memory.recall(REF, "", query, budget, 0)
