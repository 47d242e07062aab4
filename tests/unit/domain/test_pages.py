from hypothesis import given
from hypothesis import strategies as st

from katsura.domain.pages import PAGE_HASH_BYTES, page_hashes, page_namespace
from katsura.domain.shape import DType, Numerics

KEY = page_namespace(b"w" * 32, DType.F32, Numerics.INVARIANT, 4, b"s" * 32)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=40)


def test_only_full_pages_are_named() -> None:
    assert page_hashes(KEY, [1, 2, 3], 4) == []
    hashes = page_hashes(KEY, list(range(9)), 4)
    assert [len(name) for name in hashes] == [PAGE_HASH_BYTES] * 2


@given(ids, ids)
def test_a_common_prefix_has_common_names_and_nothing_else_has(a: list[int], b: list[int]) -> None:
    left, right = page_hashes(KEY, a, 4), page_hashes(KEY, b, 4)
    for index, (x, y) in enumerate(zip(left, right, strict=False)):
        assert (x == y) == (a[: 4 * index + 4] == b[: 4 * index + 4])


@given(ids)
def test_the_chain_goes_on_from_a_parent(tokens: list[int]) -> None:
    whole = page_hashes(KEY, tokens, 4)
    for cut in range(len(whole)):
        parent = whole[cut - 1] if cut else b""
        assert page_hashes(KEY, tokens[4 * cut :], 4, parent) == whole[cut:]


def test_every_part_of_the_namespace_counts() -> None:
    base = (b"w" * 32, DType.F32, Numerics.INVARIANT, 4, b"s" * 32)
    others = [
        (b"v" * 32, *base[1:]),
        (base[0], DType.BF16, *base[2:]),
        (*base[:2], Numerics.FAST, *base[3:]),
        (*base[:3], 8, base[4]),
        (*base[:4], b"t" * 32),
    ]
    assert len({page_namespace(*parts) for parts in [base, *others]}) == 6
