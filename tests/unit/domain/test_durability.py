"""What a server's settings promise, and what is said of those that promise too little."""

from __future__ import annotations

import pytest

from katsura.domain.durability import promise, shortfall
from katsura.domain.trees import Durability

STRICT, RELAXED, CACHE = Durability.STRICT, Durability.RELAXED, Durability.CACHE
GOOD = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
}
EVICTS = {"maxmemory": "100", "maxmemory-policy": "allkeys-lru"}
TO_BE_SEEN = "appendonly and appendfsync cannot be seen, allow CONFIG GET or let replicas confirm (redis.replicas)"


@pytest.mark.parametrize(
    ("changed", "replicas", "asked", "missing"),
    [
        ({}, 0, STRICT, ()),
        ({"appendfsync": "everysec"}, 0, STRICT, ("appendfsync is everysec, set always",)),
        ({"appendfsync": "everysec"}, 0, RELAXED, ()),
        ({"appendfsync": "no"}, 0, RELAXED, ("appendfsync is no, set everysec",)),
        ({"appendonly": "no"}, 0, STRICT, ("appendonly is no, set yes",)),
        ({"no-appendfsync-on-rewrite": "yes"}, 0, RELAXED, ("no-appendfsync-on-rewrite is yes, set no",)),
        (EVICTS, 0, RELAXED, ("maxmemory-policy is allkeys-lru, set noeviction",)),
        (EVICTS, 0, CACHE, ()),
        ({"maxmemory": "100"}, 0, STRICT, ()),
        ({"appendonly": "no"}, 1, STRICT, ()),
        (EVICTS, 1, STRICT, ("maxmemory-policy is allkeys-lru, set noeviction",)),
    ],
)
def test_each_setting_that_is_too_weak_is_named_with_what_it_should_be(
    changed: dict[str, str], replicas: int, asked: Durability, missing: tuple[str, ...]
) -> None:
    settings = GOOD | changed
    assert shortfall(asked, settings, replicas) == missing
    assert (promise(settings, replicas) >= asked) == (not missing)


def test_what_cannot_be_seen_is_not_promised_but_by_replicas() -> None:
    assert shortfall(RELAXED, {}, 0) == (TO_BE_SEEN,)
    assert shortfall(STRICT, EVICTS, 0) == ("maxmemory-policy is allkeys-lru, set noeviction", TO_BE_SEEN)
    assert shortfall(STRICT, {}, 1) == ()
    assert shortfall(CACHE, {}, 0) == ()
