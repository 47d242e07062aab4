from __future__ import annotations

from pathlib import Path

import pytest

from katsura.attention.config import ShardConfig
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, Numerics
from katsura.testing.compute import environment


def test_the_defaults_are_those_of_a_deployment() -> None:
    config = ShardConfig.from_env(environment(Path("m")), "attention")
    assert (config.dtype, config.numerics, config.ffn_slices, config.ffn_groups) == (
        DType.F32,
        Numerics.INVARIANT,
        8,
        4,
    )
    assert (config.page_tokens, config.step_tokens, config.hints_url) == (16, 256, "")


def test_the_hints_store_is_the_durable_one_unless_it_is_named() -> None:
    both = environment(Path("m"), STORE_URL="redis://a", HINTS_URL="redis://b")
    assert ShardConfig.from_env(both, "attention").hints_url == "redis://b"
    assert ShardConfig.from_env(environment(Path("m"), STORE_URL="redis://a"), "attention").hints_url == "redis://a"


def test_all_mistakes_are_listed_at_once() -> None:
    wrong = environment(Path("m"), PAGE_TOKENS="many", DTYPE="f64", STEP_TOKEN=3)
    with pytest.raises(InvalidArgumentError) as caught:
        ShardConfig.from_env(wrong, "attention")
    for name in ("KATSURA_PAGE_TOKENS", "KATSURA_DTYPE", "did you mean KATSURA_STEP_TOKENS"):
        assert name in caught.value.message
