"""When summaries are rolled up, and what a roll-up says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.trees import Node, Summary, SummaryBody, SummaryStatus
from katsura.memory.core.rollup import due, rolled_body
from katsura.testing.trees import step_nodes, summary_node


def chain(*levels: int, failed: tuple[int, ...] = (), covered: tuple[int, ...] = ()) -> list[tuple[Node, bool]]:
    """Summaries newest first, given oldest first by level; ids count from 1."""
    entries = []
    for i, level in enumerate(levels, start=1):
        status = SummaryStatus.FAILED if i in failed else SummaryStatus.VALID
        node = summary_node(i, step_nodes("x"), SummaryBody("t"), status)
        assert isinstance(node.body, Summary)
        entries.append((replace(node, body=replace(node.body, level=level)), i in covered))
    return list(reversed(entries))


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        (chain(), ()),
        (chain(0, 0, 0), ()),
        (chain(0, 0, 0, 0), (1, 2)),
        (chain(0, 0, 0, 0, 0), (1, 2)),
        (chain(1, 0, 0, 0), ()),
        (chain(1, 1, 1, 1, 0), (1, 2)),
        (chain(1, 0, 0, 0, 0), (2, 3)),
        (chain(0, 1, 1, 1, 0), (1, 2)),
        (chain(0, 0, 1, 0, 0), ()),
        (chain(0, 1, 1, 1, 0, failed=(2,)), ()),
        (chain(0, 0, 0, 0, failed=(2,)), ()),
        (chain(0, 0, 0, 0, 0, failed=(1,)), (2, 3)),
        (chain(0, 0, 0, 0, covered=(1, 2)), ()),
    ],
)
def test_the_oldest_of_twice_the_fanout_are_due(entries: list[tuple[Node, bool]], wanted: tuple[int, ...]) -> None:
    assert tuple(node.node_id for node in due(entries, 2)) == wanted
    assert due(entries, 1) == ()


def test_a_roll_up_quotes_its_summaries_and_carries_what_is_owed() -> None:
    first = summary_node(3, step_nodes("a"), SummaryBody("found H-7\nand more", ("f1", "f2"), ("d",), ("old",), ("x",)))
    second = summary_node(4, step_nodes("b"), SummaryBody("booked", ("f2", "f3"), ("d",), ("pay",)))
    body = rolled_body((first, second))
    assert body.text == "found H-7 / and more\nbooked"
    assert (body.facts, body.decisions, body.open_obligations) == (("f1", "f2", "f3"), ("d",), ("pay",))
    assert body.artifacts == ("x",)
