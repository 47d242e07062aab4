from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.kv_events import KvBatch, KvCleared, KvRemoved, KvSnapshot, KvStored
from katsura.router.core.mirror import KvMirror

S, LIFE, NEXT = InstanceId("s"), Incarnation(5), Incarnation(6)
PAGES = [bytes([n]) * 16 for n in range(6)]


def stored(sequence: int, *pages: int, life: Incarnation = LIFE) -> KvBatch:
    return KvBatch(life, sequence, (KvStored(b"", tuple(PAGES[p] for p in pages)),))


def following() -> KvMirror:
    mirror = KvMirror()
    assert mirror.follow(S, LIFE)
    return mirror


def test_batches_are_applied_in_order_and_once() -> None:
    mirror = following()
    assert mirror.apply(S, stored(1, 0, 1))
    assert mirror.apply(S, KvBatch(LIFE, 2, (KvRemoved((PAGES[1],)),)))
    assert mirror.apply(S, stored(1, 0, 1))
    assert mirror.match(PAGES) == {S: 1}
    assert mirror.apply(S, KvBatch(LIFE, 3, (KvCleared(), *stored(0, 0, 1, 2).events)))
    assert mirror.match(PAGES) == {S: 3}
    assert mirror.sequences() == {"s": 3}
    assert not mirror.follow(S, LIFE)


def test_a_gap_makes_the_shard_cold_until_a_newer_snapshot_is_taken() -> None:
    mirror = following()
    mirror.apply(S, stored(1, 0))
    assert not mirror.apply(S, stored(3, 1))
    assert mirror.match(PAGES) == {}
    assert mirror.wants(S, LIFE, 2)
    mirror.load(S, KvSnapshot(LIFE, 2, tuple(PAGES[:2])))
    assert mirror.apply(S, stored(2, 5))
    assert mirror.match(PAGES) == {S: 2}
    assert mirror.apply(S, stored(3, 2))
    assert (mirror.match(PAGES), mirror.sequences()) == ({S: 3}, {"s": 3})


def test_a_snapshot_that_did_not_help_is_not_taken_again() -> None:
    mirror = following()
    assert not mirror.apply(S, stored(9, 0))
    mirror.load(S, KvSnapshot(LIFE, 4, ()))
    assert not mirror.apply(S, stored(9, 0))
    assert not mirror.wants(S, LIFE, 4)
    assert mirror.wants(S, LIFE, 9)


def test_a_shard_in_step_wants_no_snapshot() -> None:
    mirror = following()
    mirror.apply(S, stored(1, 0))
    assert not mirror.wants(S, LIFE, 1)
    assert not mirror.wants(InstanceId("other"), LIFE, 1)


def test_a_new_life_starts_with_nothing_and_the_old_ones_batches_are_ignored() -> None:
    mirror = following()
    mirror.apply(S, stored(1, 0))
    assert mirror.follow(S, NEXT)
    assert mirror.match(PAGES) == {}
    assert mirror.apply(S, stored(2, 1))
    assert not mirror.wants(S, LIFE, 2)
    assert mirror.apply(S, stored(1, 0, 1, life=NEXT))
    assert mirror.match(PAGES) == {S: 2}


def test_a_shard_that_nobody_follows_or_that_is_gone_holds_nothing() -> None:
    mirror = KvMirror()
    assert mirror.apply(S, stored(1, 0))
    assert mirror.match(PAGES) == {}
    mirror.follow(S, LIFE)
    mirror.apply(S, stored(1, 0))
    mirror.forget(S)
    assert (mirror.match(PAGES), mirror.sequences()) == ({}, {})
