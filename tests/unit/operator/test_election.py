from __future__ import annotations

import random
from typing import Any

from katsura_operator.core.election import (
    LEASE_S,
    RENEW_S,
    Standing,
    claim,
    may_take,
    observe,
    released,
    renewed,
)

NOW = "2026-11-21T12:00:00.000000Z"


class Server:
    """A lease with compare-and-set."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0

    def put(self, body: dict[str, Any]) -> bool:
        known = body["metadata"].get("resourceVersion")
        if (self.lease["metadata"]["resourceVersion"] if self.lease else None) != known:
            return False
        self.version += 1
        self.lease = {**body, "metadata": {"uid": "u", "resourceVersion": str(self.version)}}
        return True


def turn(server: Server, standing: Standing, identity: str, now_s: float) -> Standing:
    lease = server.lease
    standing = observe(standing, lease, now_s)
    if not may_take(standing, lease, identity, now_s):
        return Standing(standing.seen_version, standing.seen_at_s)
    if not server.put(claim(lease, "n", "lease", identity, NOW)):
        return Standing()
    return renewed(str(server.version), now_s)


def test_two_candidates_never_may_write_at_the_same_time() -> None:
    """Clocks that start anywhere, turns that come late, candidates that sleep through their lease."""
    moved = sum(play(seed) == {"a", "b"} for seed in range(200))
    assert moved > 150, "leadership moves when a holder sleeps"


def play(seed: int) -> set[str]:
    rng = random.Random(seed)
    server, standings = Server(), {"a": Standing(), "b": Standing()}
    offset = {name: rng.uniform(0, 1e6) for name in standings}
    asleep, now_s = dict.fromkeys(standings, 0.0), 0.0
    led: set[str] = set()
    for _ in range(400):
        now_s += rng.uniform(0.1, RENEW_S)
        name = rng.choice(["a", "b"])
        if now_s >= asleep[name]:
            standings[name] = turn(server, standings[name], name, now_s + offset[name])
            if rng.random() < 0.05:
                asleep[name] = now_s + rng.uniform(0, 3 * LEASE_S)
        writing = [n for n, s in standings.items() if s.may_write(now_s + offset[n])]
        assert len(writing) <= 1, f"seed {seed}"
        led.update(writing)
    return led


def test_a_lease_that_was_given_back_is_free_at_once() -> None:
    server = Server()
    held = turn(server, Standing(), "a", 0.0)
    assert held.may_write(0.0)
    assert server.lease is not None
    assert not turn(server, Standing(), "b", 1.0).may_write(1.0)
    server.put({**released(server.lease), "metadata": server.lease["metadata"]})
    assert turn(server, Standing(), "b", 2.0).may_write(2.0)


def test_a_change_of_holder_is_counted_and_a_renewal_is_not() -> None:
    first = claim(None, "n", "lease", "a", NOW)
    stored = {**first, "metadata": {"uid": "u", "resourceVersion": "1"}}
    assert claim(stored, "n", "lease", "a", NOW)["spec"]["leaseTransitions"] == 0
    assert claim(stored, "n", "lease", "b", NOW)["spec"]["leaseTransitions"] == 1
