"""Roll-ups: summaries of summaries, so that a context is bounded in subgoals as it is in steps.

Of `fanout * 2` summaries of one level in a row the oldest `fanout` become one of the next level. A branch of n subgoals
then shows fewer than `fanout * 2` summaries of each of log(n) levels.

A branch that turned off in the middle of a roll-up has what it has of that cover one by one, and rolls it up with what
follows there: a summary may be under many roll-ups, of which each branch shows its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from katsura.domain.trees import Node, Summary, SummaryBody, SummaryStatus
from katsura.memory.core.compress import bounded, shorten

DEFAULT_FANOUT: Final = 8
NEVER: Final = 1
_LINE_CHARS: Final = 160


def due(newest_first: Sequence[tuple[Node, bool]], fanout: int) -> tuple[Node, ...]:
    """The summaries to roll up next, oldest first; none where nothing is due.

    Args:
        newest_first: the branch's summaries, and whether each was tried: a roll-up that is not VALID ends with it.
    """
    if fanout <= NEVER:
        return ()

    height, heights = -1, []
    for node, tried in newest_first:
        sound = node.judgement is not None and node.judgement.status is SummaryStatus.VALID
        # What an older version of us left of a level counts with the next one, or runs would end at it.
        height = max(height, _summary(node).level) if sound and not tried else -1
        heights.append((height, node))
    for level, entries in groupby(heights, itemgetter(0)):
        nodes = [node for _, node in entries]
        if level >= 0 and len(nodes) >= 2 * fanout:
            return tuple(reversed(nodes[-fanout:]))
    return ()


def rolled_body(cover: Sequence[Node]) -> SummaryBody:
    """A line of each summary, and the newest of what they list; obligations are those of the last one, which carries
    what is still owed."""
    bodies = [_summary(node).body for node in cover]
    text = "\n".join(shorten(body.text, _LINE_CHARS) for body in bodies)
    facts, decisions, artifacts = (
        tuple(dict.fromkeys(item for body in bodies for item in getattr(body, name)))
        for name in ("facts", "decisions", "artifacts")
    )
    return bounded(SummaryBody(text, facts, decisions, bodies[-1].open_obligations, artifacts), cover)


def _summary(node: Node) -> Summary:
    assert isinstance(node.body, Summary), "the summary chain holds summaries"
    return node.body
