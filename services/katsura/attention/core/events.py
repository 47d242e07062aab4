"""KV events: which pages this shard can be matched against, told in order to whoever mirrors it.

Events of one step form a numbered batch (`katsura.domain.kv_events`), handed out after the step was committed. A
mirror that misses a batch takes a snapshot, which carries the number that it is valid at.
"""

from __future__ import annotations

from katsura.domain.ids import Incarnation
from katsura.domain.kv_events import KvBatch, KvEvent, KvRemoved, KvStored


class EventLog:
    """Collects events and hands them out in numbered batches."""

    def __init__(self) -> None:
        self.last_sequence = 0
        """Number of the last batch that was handed out."""
        self._pending: list[KvEvent] = []

    def stored(self, name: bytes, parent: bytes) -> None:
        """A page was published: it can be matched."""
        last = self._pending[-1] if self._pending else None
        if isinstance(last, KvStored) and last.hashes[-1] == parent:
            self._pending[-1] = KvStored(last.parent, (*last.hashes, name))
        else:
            self._pending.append(KvStored(parent, (name,)))

    def removed(self, name: bytes) -> None:
        """A page was evicted or dropped: it cannot be matched any more."""
        last = self._pending[-1] if self._pending else None
        if isinstance(last, KvRemoved):
            self._pending[-1] = KvRemoved((*last.hashes, name))
        else:
            self._pending.append(KvRemoved((name,)))

    def take(self, incarnation: Incarnation) -> KvBatch | None:
        """The events since the last call as the next batch; None where there were none."""
        if not self._pending:
            return None
        self.last_sequence += 1
        batch = KvBatch(incarnation, self.last_sequence, tuple(self._pending))
        self._pending = []
        return batch
