"""Scoring and choosing what is recalled."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.domain.trees import Node, Step, SummaryBody, SummaryStatus
from katsura.memory.core.recall import Scored, choose, scored, trusted, words
from katsura.testing.trees import step_nodes, summary_node

TEXTS = (
    "Room H-7 costs 900 USD.",
    "The train leaves at 9:40.",
    "Nothing to see here.",
    "Room H-8 has a view.",
)


def test_words_keep_ids_amounts_and_addresses_whole() -> None:
    assert words("Room H-7, 1.250 USD on 2026-11-21; mail a@b.org!") == [
        "room", "h-7", "1.250", "usd", "on", "2026-11-21", "mail", "a@b.org",
    ]  # fmt: skip


def test_a_rare_word_weighs_more_than_a_frequent_one() -> None:
    found = scored(step_nodes(*TEXTS), "the room H-8")
    ids = [int(one.node.node_id) for one in found]
    assert ids[0] == 4
    assert 3 not in ids


def test_of_equals_the_newest_comes_first_and_words_that_nobody_says_find_nothing() -> None:
    nodes = step_nodes("same words", "same words")
    assert [int(one.node.node_id) for one in scored(nodes, "words")] == [2, 1]
    assert scored(nodes, "absent") == ()
    assert scored((), "words") == ()


def test_summaries_that_are_not_valid_lead_nowhere() -> None:
    cover = step_nodes(*TEXTS)
    nodes = [summary_node(i, cover, SummaryBody("x"), status) for i, status in enumerate(SummaryStatus, start=10)]
    assert [n.judgement.status for n in trusted(nodes) if n.judgement] == [SummaryStatus.VALID]


def chosen_of(covers: list[tuple[Node, ...]], scores: list[float]) -> list[Scored]:
    return [
        Scored(summary_node(100 + i, cover, SummaryBody("x")), score)
        for i, (cover, score) in enumerate(zip(covers, scores, strict=True))
    ]


def test_a_step_counts_for_its_summarys_share() -> None:
    first, second = step_nodes("a room"), step_nodes("a room", first_id=2)
    best = chosen_of([first, second], [9.0, 3.0])
    covers = {one.node.node_id: cover for one, cover in zip(best, [first, second], strict=True)}
    size = choose(best, covers, "room", 1000).segments[0].token_count
    found = choose(best, covers, "room", size)
    assert [int(s.node_id) for s in found.segments] == [1]
    assert [(int(d.node_id), d.reason) for d in found.dropped] == [(2, "over-budget")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 80),
    st.randoms(),
)
def test_the_budget_is_kept_the_order_is_the_paths_and_the_same_is_answered_again(
    texts: list[list[str]], budget: int, rng: random.Random
) -> None:
    covers: list[tuple[Node, ...]] = []
    first = 1
    for part in texts:
        covers.append(
            step_nodes(*(Step(text) for text in part), first_id=first, after=covers[-1][-1] if covers else None)
        )
        first += len(part)
    best = chosen_of(covers, [rng.uniform(0.1, 9) for _ in covers])
    by_id = {one.node.node_id: cover for one, cover in zip(best, covers, strict=True)}
    found = choose(best, by_id, "room train view", budget)
    assert found.total_tokens == sum(s.token_count for s in found.segments) <= budget
    ids = [int(s.node_id) for s in found.segments]
    assert ids == sorted(set(ids))
    shuffled = dict(rng.sample(list(by_id.items()), len(by_id)))
    assert choose(best, shuffled, "room train view", budget).segments == found.segments
