from __future__ import annotations

from katsura.attention.core.events import EventLog
from katsura.domain.ids import Incarnation
from katsura.domain.kv_events import KvBatch, KvRemoved, KvStored

LIFE = Incarnation(5)


def test_a_step_is_one_batch_and_a_chain_is_one_event() -> None:
    log = EventLog()
    log.stored(b"a", b"")
    log.stored(b"b", b"a")
    log.stored(b"x", b"")
    log.removed(b"q")
    log.removed(b"r")
    assert log.take(LIFE) == KvBatch(
        LIFE, 1, (KvStored(b"", (b"a", b"b")), KvStored(b"", (b"x",)), KvRemoved((b"q", b"r")))
    )


def test_batches_are_numbered_without_gaps_and_an_empty_one_has_no_number() -> None:
    log = EventLog()
    assert log.take(LIFE) is None
    log.removed(b"a")
    first = log.take(LIFE)
    assert log.take(LIFE) is None
    log.removed(b"b")
    second = log.take(LIFE)
    assert first is not None
    assert second is not None
    assert (first.sequence, second.sequence, log.last_sequence) == (1, 2, 2)
