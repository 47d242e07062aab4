from __future__ import annotations

from katsura.attention.core.cache import PageCache
from katsura.attention.core.sequence import Owner, Program, Sequence

OWNER = Owner("t", b"n" * 32)


def filled(cache: PageCache, tokens: list[int]) -> Sequence:
    """A sequence whose tokens are all computed and committed."""
    sequence = Sequence("s", OWNER, Program(), (0, 0, 0), tokens, None)
    cache.cover(sequence, len(tokens))
    sequence.computed = len(tokens)
    cache.publish(sequence)
    return sequence


def test_a_match_stops_one_token_short_of_the_prompt() -> None:
    cache = PageCache(8, 4)
    filled(cache, list(range(8)))
    same = Sequence("u", OWNER, Program(), (0, 0, 0), list(range(8)), None)
    longer = Sequence("v", OWNER, Program(), (0, 0, 0), list(range(9)), None)
    assert cache.matched(same) == [0]
    assert cache.matched(longer) == [0, 1]


def test_writing_behind_a_cut_in_a_published_page_copies_it_once() -> None:
    cache = PageCache(8, 4)
    sequence = filled(cache, list(range(8)))
    cache.shorten(sequence, 6)
    assert cache.missing(sequence, 7) == 1
    assert cache.cover(sequence, 7) == [(1, 2)]
    assert sequence.pages == [0, 2]
    assert cache.cover(sequence, 8) == []


def test_writing_at_the_edge_of_a_shared_page_replaces_it_without_a_copy() -> None:
    cache = PageCache(8, 4)
    sequence = filled(cache, list(range(8)))
    cache.shorten(sequence, 4)
    assert (cache.cover(sequence, 5), len(sequence.pages)) == ([], 2)


def test_a_page_that_somebody_named_first_takes_the_place_of_ours() -> None:
    cache = PageCache(8, 4)
    first = filled(cache, list(range(6)))
    second = filled(cache, list(range(6)))
    assert second.pages[0] == first.pages[0]
    assert cache.pool.refs(first.pages[0]) == 2
    assert cache.pool.free_count == 5, "one shared page and two partial ones are held"


def test_what_follows_a_dropped_page_is_never_published() -> None:
    cache = PageCache(8, 4)
    sequence = filled(cache, list(range(4)))
    assert cache.drop_named(sequence.names(4, 1), b"other") == 0
    assert cache.drop_named(sequence.names(4, 1), OWNER.namespace) == 1
    sequence.tokens += [4, 5, 6, 7]
    cache.cover(sequence, 8)
    sequence.computed = 8
    cache.publish(sequence)
    assert len(cache.index) == 0


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    cache = PageCache(4, 2)
    cache.let_go(filled(cache, [1, 2, 3, 4, 5, 6]))
    assert len(cache.index) == 3
    filled(cache, [9, 9, 9, 9])
    again = Sequence("u", OWNER, Program(), (0, 0, 0), [1, 2, 3, 4, 5, 6, 7], None)
    assert cache.matched(again) == [0, 1]
