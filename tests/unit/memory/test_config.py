"""Configuration comes from the environment, mistakes all at once."""

from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.trees import Durability
from katsura.memory.config import MemoryConfig

GOOD = {"KATSURA_STORE_URL": "unix:///run/s", "KATSURA_INTERNAL_TOKEN": "secret"}


def test_defaults_are_filled_in() -> None:
    config = MemoryConfig.from_env(GOOD)
    assert (config.store_url, config.store_replicas) == ("unix:///run/s", 0)
    assert (config.limits.events, config.heartbeat_s) == (8192, 15.0)
    assert config.serve.role == "memory"


def test_every_mistake_is_listed() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        MemoryConfig.from_env(
            {"KATSURA_MEMORY_EVENTS_KEPT": "many", "KATSURA_MEMORY_HEARTBEATS": "1", "KATSURA_INTERNAL_TOKEN": "x"}
        )
    for name in ("KATSURA_MEMORY_EVENTS_KEPT", "KATSURA_MEMORY_HEARTBEATS", "KATSURA_STORE_URL"):
        assert name in caught.value.message


def test_durability_is_a_word_of_the_memory_store() -> None:
    assert MemoryConfig.from_env(GOOD).durability is Durability.UNSPECIFIED
    assert MemoryConfig.from_env({**GOOD, "KATSURA_STORE_DURABILITY": "relaxed"}).durability is Durability.RELAXED
    with pytest.raises(InvalidArgumentError, match="one of strict, relaxed, cache"):
        MemoryConfig.from_env({**GOOD, "KATSURA_STORE_DURABILITY": "eternal"})
