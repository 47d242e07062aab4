from __future__ import annotations

from katsura.attention.core.pages import PagePool


def test_pages_come_in_one_run_behind_the_page_that_they_follow() -> None:
    pool = PagePool(32)
    first, _ = pool.take(3)
    other, _ = pool.take(2)
    assert first == [0, 1, 2]
    assert other == [3, 4], "the second run begins where room follows"
    assert pool.take(2, after=4)[0] == [5, 6]


def test_a_run_goes_where_it_fits_whole() -> None:
    pool = PagePool(8)
    pool.take(8)
    pool.release([1, 4, 5, 6])
    assert pool.take(3, after=7)[0] == [4, 5, 6]


def test_released_pages_are_evicted_oldest_first_and_only_when_blanks_run_out() -> None:
    pool = PagePool(4)
    pages, _ = pool.take(4)
    for page in pages:
        pool.publish(page)
    pool.release([3, 2])
    pool.release([1])
    assert (pool.free_count, pool.cached_count) == (3, 3)
    assert pool.take(2) == ([2, 3], [3, 2])
    assert pool.cached_count == 1


def test_a_matched_page_leaves_the_free_list_and_is_not_written() -> None:
    pool = PagePool(2)
    (page,), _ = pool.take(1)
    assert pool.is_writable(page)
    pool.publish(page)
    assert not pool.is_writable(page)
    pool.release([page])
    assert pool.free_count == 2
    pool.share(page)
    assert (pool.free_count, pool.refs(page)) == (1, 1)


def test_an_unpublished_page_is_blank_when_its_last_holder_lets_go() -> None:
    pool = PagePool(1)
    (page,), _ = pool.take(1)
    pool.publish(page)
    pool.share(page)
    pool.unpublish(page)
    pool.release([page])
    assert pool.is_writable(page)
    pool.release([page])
    assert (pool.free_count, pool.cached_count) == (1, 0)
