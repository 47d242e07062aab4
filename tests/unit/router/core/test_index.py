from katsura.domain.ids import InstanceId
from katsura.router.core.index import PrefixIndex

A, B, C = InstanceId("a"), InstanceId("b"), InstanceId("c")
PAGES = [bytes([n]) * 16 for n in range(6)]


def test_each_shards_longest_held_prefix_is_found() -> None:
    index = PrefixIndex()
    index.add(A, PAGES[:4])
    index.add(B, PAGES[:2])
    index.add(C, PAGES[2:])
    assert index.match(PAGES) == {A: 4, B: 2}
    assert index.match(PAGES[:1]) == {A: 1, B: 1}
    assert index.match([]) == {}


def test_a_hole_ends_the_match_and_filling_it_restores_it() -> None:
    index = PrefixIndex()
    index.add(A, PAGES)
    index.remove(A, [PAGES[2], b"never held......"])
    assert index.match(PAGES) == {A: 2}
    index.add(A, [PAGES[2]])
    assert index.match(PAGES) == {A: 6}


def test_a_forgotten_shards_bit_means_nothing_to_the_next_one() -> None:
    index = PrefixIndex()
    index.add(A, PAGES)
    index.forget(A)
    index.forget(A)
    assert index.match(PAGES) == {}
    index.add(B, PAGES[:1])
    assert index.match(PAGES) == {B: 1}
    assert (index.page_count(A), index.page_count(B)) == (0, 1)


def test_more_shards_than_a_machine_word_has_bits() -> None:
    index = PrefixIndex()
    names = [InstanceId(f"s{n}") for n in range(130)]
    for n, name in enumerate(names):
        index.add(name, PAGES[: 1 + n % 6])
    assert index.match(PAGES) == {name: 1 + n % 6 for n, name in enumerate(names)}


def test_removing_from_an_unknown_shard_is_no_error() -> None:
    index = PrefixIndex()
    index.remove(A, PAGES)
    assert index.match(PAGES) == {}
