from dataclasses import replace

from katsura.domain.ids import Incarnation, InstanceId
from katsura.router.core.ledger import SETTLE_MS, Entry, InFlight, Ledger
from katsura.testing.fleet import shard_record

S = InstanceId("s")


def entry(at_ms: int, tokens: int = 10, life: int = 1) -> Entry:
    return Entry(S, Incarnation(life), tokens, at_ms)


def test_what_is_in_flight_counts_until_it_ends() -> None:
    ledger = Ledger()
    ledger.decided("a", entry(1000))
    ledger.decided("b", entry(1000, tokens=5))
    ledger.decided("b", entry(1000, tokens=5))
    assert ledger.of(S) == InFlight(2, 15)
    ledger.finished("a")
    ledger.finished("a")
    assert ledger.of(S) == InFlight(1, 5)
    assert ledger.of(InstanceId("other")) == InFlight()


def test_a_younger_lease_counts_it_itself() -> None:
    ledger = Ledger()
    ledger.decided("a", entry(1000))
    ledger.settle(replace(shard_record("s"), put_ms=1000 + SETTLE_MS - 1))
    assert ledger.of(S) == InFlight(1, 10)
    ledger.settle(replace(shard_record("other"), put_ms=9999))
    assert ledger.of(S) == InFlight(1, 10)
    ledger.settle(replace(shard_record("s"), put_ms=1000 + SETTLE_MS))
    assert ledger.of(S) == InFlight()


def test_what_an_earlier_life_was_sent_is_lost_with_it() -> None:
    ledger = Ledger()
    ledger.decided("a", entry(1000, life=1))
    ledger.decided("b", entry(1000, life=2))
    ledger.settle(replace(shard_record("s", incarnation=2), put_ms=1000))
    assert ledger.of(S) == InFlight(1, 10)


def test_what_was_sent_to_a_shard_that_is_gone_counts_no_more() -> None:
    ledger = Ledger()
    ledger.decided("a", entry(1000))
    ledger.forget(S)
    ledger.forget(S)
    ledger.finished("a")
    assert ledger.of(S) == InFlight()
