from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError, OutOfRangeError, Reason
from katsura.gateway.core.budget import Limit, answer_limit, answer_reserve


def test_an_unlimited_answer_reserves_a_quarter_and_may_use_all_that_is_left() -> None:
    assert answer_reserve(2048, Limit(None)) == 512
    assert answer_limit(2048, 48, Limit(None)) == 2000


def test_a_limit_is_kept() -> None:
    assert answer_reserve(2048, Limit(100)) == 100
    assert answer_limit(2048, 1948, Limit(100)) == 100


def test_an_answer_that_fills_the_context_is_refused_by_the_clients_name_for_it() -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        answer_reserve(64, Limit(64, "max_output_tokens", "input"))
    assert failure.value.field == "max_output_tokens"


@pytest.mark.parametrize(("prompt", "limit"), [(1949, 100), (2048, None), (5000, None)])
def test_what_does_not_fit_says_context_too_long(prompt: int, limit: int | None) -> None:
    with pytest.raises(OutOfRangeError) as failure:
        answer_limit(2048, prompt, Limit(limit))
    assert (failure.value.reason, failure.value.field) == (Reason.CONTEXT_TOO_LONG, "messages")
