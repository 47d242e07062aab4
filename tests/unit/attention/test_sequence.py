from __future__ import annotations

from katsura.attention.core.sequence import Owner, Program, Sequence
from katsura.domain.pages import page_hashes

OWNER = Owner("t", b"n" * 32)


def made(tokens: list[int]) -> Sequence:
    return Sequence("s", OWNER, Program(), (0, 0, 0), tokens, None)


def test_names_are_those_that_the_gateway_and_the_router_compute() -> None:
    tokens = list(range(11))
    sequence = made(tokens)
    assert sequence.names(4, 1) == page_hashes(OWNER.namespace, tokens, 4)[:1]
    assert sequence.names(4, 2) == page_hashes(OWNER.namespace, tokens, 4)


def test_a_cut_sequence_forgets_the_names_beyond_the_cut() -> None:
    sequence = made(list(range(12)))
    sequence.computed = sequence.published = 3
    sequence.names(4, 3)
    sequence.cut(5, 4)
    sequence.tokens += [90, 91, 92]
    assert sequence.names(4, 2) == page_hashes(OWNER.namespace, [0, 1, 2, 3, 4, 90, 91, 92], 4)
    assert (sequence.computed, sequence.published) == (3, 1)
