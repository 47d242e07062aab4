"""Two-stage recall: first which summaries a question is about, then which of the steps under them.

As hierarchical attention does it (HCAM, arXiv 2105.14039), but lexically: chunks are segments, their keys are their
summaries, both stages score by BM25, and a step counts for as much as its own words times its summary's share. The
result is a function of the texts and the question alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from katsura.domain.ids import NodeId
from katsura.domain.trees import Node, Shown, Step, Summary, SummaryStatus
from katsura.memory.core.assemble import OVER_BUDGET, Dropped, Segment, SegmentKind, step_segment
from katsura.memory.core.search import lower, texts_of

SUMMARIES_DEFAULT: Final = 4
SUMMARIES_MAX: Final = 32
SUMMARIES_LOOKED_AT: Final = 1024
"""Summaries that one recall scores. A roll-up may have lost the words of what it covers, so all are looked under, the
most promising and the newest first."""
STEPS_LOOKED_AT: Final = 2048
"""Steps that one recall scores; of what lies under the best summaries, the newest."""
_SATURATION, _LENGTH_SHARE = 1.2, 0.75
"""k1 and b of BM25 (Robertson and Zaragoza, 2009)."""
_WORD: Final = re.compile(r"[^\W_]+(?:[-./_:@][^\W_]+)*")


@dataclass(frozen=True, slots=True)
class Scored:
    """A node and how much it has to do with the question, above 0."""

    node: Node
    score: float


@dataclass(frozen=True, slots=True)
class Recalled:
    """Steps in the order of the path, within the budget; the summaries that led to them, best first; what did not
    fit."""

    segments: tuple[Segment, ...]
    total_tokens: int
    chosen: tuple[Scored, ...]
    dropped: tuple[Dropped, ...]


def words(text: str) -> list[str]:
    """Words of a text as recall compares them: ids and amounts (`H-7`, `2026-11-21`) stay whole."""
    return _WORD.findall(lower(text))


def scored(nodes: Sequence[Node], query: str) -> tuple[Scored, ...]:
    """Nodes that say at least one word of `query`, the best first; of equals, the newest."""
    asked = dict.fromkeys(words(query))
    counts = [Counter(words("\n".join(texts_of(node.body)))) for node in nodes]
    lengths = [sum(count.values()) for count in counts]
    mean = sum(lengths) / len(lengths) if any(lengths) else 1.0
    weights = {word: _rarity(word, counts) for word in asked}
    found = []
    for node, count, length in zip(nodes, counts, lengths, strict=True):
        score = sum(_gain(count[word], length / mean) * weight for word, weight in weights.items())
        if score > 0:
            found.append(Scored(node, score))
    return tuple(sorted(found, key=lambda one: (-one.score, -one.node.node_id)))


def trusted(nodes: Iterable[Node]) -> list[Node]:
    """The summaries that may be relied on."""
    return [n for n in nodes if n.judgement is not None and n.judgement.status is SummaryStatus.VALID]


def by_promise(rolled: Sequence[Node], query: str) -> list[Node]:
    """Roll-ups in the order in which they are looked under: those that say a word of `query`, then the newest."""
    first = [one.node for one in scored(rolled, query)]
    known = {node.node_id for node in first}
    return first + sorted((n for n in rolled if n.node_id not in known), key=lambda n: -n.depth)


def choose(chosen: Sequence[Scored], covers: Mapping[NodeId, Sequence[Node]], query: str, budget: int) -> Recalled:
    """The best steps under `chosen` summaries in at most `budget` tokens; `covers` are their steps, by summary."""
    best = max((one.score for one in chosen), default=1.0)
    share = {step.node_id: one.score / best for one in chosen for step in covers[one.node.node_id]}
    steps = {step.node_id: step for cover in covers.values() for step in cover}
    ranked = sorted(
        scored(list(steps.values()), query), key=lambda one: (-one.score * share[one.node.node_id], -one.node.node_id)
    )
    taken: list[Segment] = []
    dropped: list[Dropped] = []
    left = budget
    for one in ranked:
        assert isinstance(one.node.body, Step), "covers of level 0 hold steps"
        segment = step_segment(Shown(one.node, None))
        if segment.token_count <= left:
            left -= segment.token_count
            taken.append(segment)
        else:
            dropped.append(Dropped(SegmentKind.STEP, segment.node_id, OVER_BUDGET, segment.token_count))
    depth = {node_id: step.depth for node_id, step in steps.items()}
    in_order = tuple(sorted(taken, key=lambda segment: depth[segment.node_id]))
    return Recalled(in_order, budget - left, tuple(chosen), tuple(dropped))


def parts_of(node: Node) -> tuple[NodeId, ...]:
    """The summaries under a roll-up; none under one that covers steps."""
    assert isinstance(node.body, Summary), "recall descends through summaries"
    return node.body.parts


def _rarity(word: str, counts: Sequence[Counter[str]]) -> float:
    holding = sum(word in count for count in counts)
    return math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))


def _gain(times: int, relative_length: float) -> float:
    return times * (_SATURATION + 1) / (times + _SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * relative_length))
