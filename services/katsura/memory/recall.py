"""Recall: steps that summaries stand for are brought back where a question is about them."""

from __future__ import annotations

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Summary
from katsura.memory.core import limits
from katsura.memory.core.recall import (
    STEPS_LOOKED_AT,
    SUMMARIES_DEFAULT,
    SUMMARIES_LOOKED_AT,
    SUMMARIES_MAX,
    Recalled,
    Scored,
    by_promise,
    choose,
    parts_of,
    scored,
    trusted,
    words,
)
from katsura.memory.operations import thread_if
from katsura.memory.summaries import Summaries
from katsura.state.trees import TreeRef


class Recall(Summaries):
    """The operation that looks under summaries."""

    async def recall(self, ref: TreeRef, branch: str, query: str, budget: int, most: int) -> Recalled:
        """The steps of a branch that have most to do with `query`, in at most `budget` tokens: first over its VALID
        summaries, down through roll-ups, then over the steps under the `most` best ones."""
        limits.check_text(query, "query")
        if not words(query):
            raise limits.refuse("query", "it holds no word")
        limits.check_range(budget, "budget_tokens", 1, limits.BUDGET_TOKENS_MAX)
        most = limits.check_range(most, "most_summaries", 0, SUMMARIES_MAX) or SUMMARIES_DEFAULT
        chosen = await self._best(ref, branch, query, most)
        covers: dict[NodeId, tuple[Node, ...]] = {}
        left = STEPS_LOOKED_AT
        for one in chosen:
            covers[one.node.node_id] = await self._newest_of(ref, one.node, left)
            left -= len(covers[one.node.node_id])
        return await thread_if(STEPS_LOOKED_AT - left, lambda: choose(chosen, covers, query, budget))

    async def _best(self, ref: TreeRef, branch: str, query: str, most: int) -> tuple[Scored, ...]:
        waiting = trusted(node for node, _ in await self._trees.summaries(ref, branch, SUMMARIES_LOOKED_AT))
        found: list[Node] = []
        while waiting:
            found += [node for node in waiting if not parts_of(node)]
            rolled, waiting = by_promise([node for node in waiting if parts_of(node)], query), []
            for node in rolled:
                if len(found) + len(waiting) >= SUMMARIES_LOOKED_AT:
                    break
                waiting += trusted(await self._trees.nodes(ref, parts_of(node), limits.ANSWER_BYTES_MAX))
        return scored(found, query)[:most]

    async def _newest_of(self, ref: TreeRef, node: Node, most: int) -> tuple[Node, ...]:
        assert isinstance(node.body, Summary), "recall descends through summaries"
        count = min(node.body.covered_count, most)
        return await self._steps_up_to(ref, node.birth_branch, node.body.last_covered, count) if count else ()
