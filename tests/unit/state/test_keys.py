"""Names from outside cannot forge keys, and every key says whose it is."""

from __future__ import annotations

import inspect

from katsura.state import keys
from katsura.state.keys import quoted


def test_separators_and_braces_are_encoded() -> None:
    assert quoted("a/b{c}:d e%") == "a%2Fb%7Bc%7D%3Ad%20e%25"


OF_STORE = (
    keys.tree("a b", "t/1", "meta"),
    keys.tree("a", "{hints}", "cold"),
    keys.tree_index("a"),
    keys.usage("a"),
    keys.requests("a", 7),
    keys.work_index("a"),
    keys.tree_notices("a"),
    keys.blocks("a", "user", "ann", "values"),
    keys.block_owners("a"),
    keys.responses("a", "t").encode(),
)
OF_OTHERS = (
    keys.STORE_INCARNATION.encode(),
    keys.BARRIER.encode(),
    keys.lease_records("memory"),
    keys.lease_lives("memory"),
    keys.lease_expiry("memory"),
    keys.FLEET,
    keys.kv_events("a/b"),
    keys.kv_snapshot("a/b"),
    keys.DECISIONS,
    keys.COORDINATOR,
    keys.COORDINATOR_TOKENS,
    keys.expert_tables("d/e", "r"),
    keys.EXPERT_TABLE_NAMES,
    keys.endpoints("d/e"),
    keys.ENDPOINT_NAMES,
    keys.program_affinity(b"salt", "p"),
    keys.TENANTS.encode(),
    keys.API_KEY_DIGESTS.encode(),
    keys.tenant("a/b").encode(),
    keys.api_key("d").encode(),
    b"theirs",
    b"{a/b}:meta",
    b"other:{a/b}:meta",
)


def test_what_a_memory_store_owns_is_told_from_what_is_shared() -> None:
    assert [key for key in OF_STORE if not keys.is_of_store(key)] == []
    assert [key for key in OF_OTHERS if keys.is_of_store(key)] == []


def test_every_key_is_on_one_of_the_two_sides() -> None:
    """A new key must be decided: does it go when its store is deleted?"""
    builders = {n for n, f in vars(keys).items() if inspect.isfunction(f) and f.__module__ == keys.__name__}
    constants = {n for n, v in vars(keys).items() if n.isupper() and not n.startswith("_")}
    decided = {
        *("tree", "tree_index", "tree_notices", "usage", "requests", "work_index", "blocks", "block_owners"),
        "responses",
        *("lease_records", "lease_lives", "lease_expiry", "kv_events", "kv_snapshot", "expert_tables", "endpoints"),
        *("program_affinity", "tenant", "api_key", "is_of_store"),
        *("STORE_INCARNATION", "BARRIER", "FLEET", "DECISIONS", "COORDINATOR", "COORDINATOR_TOKENS"),
        *("EXPERT_TABLE_NAMES", "ENDPOINT_NAMES", "TENANTS", "API_KEY_DIGESTS"),
    }
    assert (builders | constants) == decided, "add it to OF_STORE or OF_OTHERS, and here"
