from __future__ import annotations

from katsura.attention.core.prefixes import PrefixIndex

NS, OTHER = b"n" * 32, b"o" * 32


def chain() -> PrefixIndex:
    index = PrefixIndex()
    index.insert(0, b"a", b"", NS)
    index.insert(1, b"b", b"a", NS)
    index.insert(2, b"c", b"b", NS)
    index.insert(3, b"d", b"a", NS)
    index.insert(4, b"z", b"", OTHER)
    return index


def test_a_match_ends_at_the_first_unknown_name() -> None:
    assert chain().match([b"a", b"b", b"x", b"c"]) == [0, 1]


def test_all_pages_after_one_are_named_last_ones_first() -> None:
    assert chain().below(0) == [2, 3, 1, 0]
    assert chain().below(7) == []


def test_a_removed_page_is_not_matched() -> None:
    index = chain()
    assert index.remove(1) == b"b"
    assert index.match([b"a", b"b", b"c"]) == [0]
    assert index.page_of(b"b") is None


def test_namespaces_are_told_apart() -> None:
    index = chain()
    assert index.of_namespace(OTHER) == [4]
    assert index.namespace_of(b"z") == OTHER
    assert index.namespace_of(b"?") is None
    assert len(index) == 5
