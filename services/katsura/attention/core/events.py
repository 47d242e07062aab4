"""KV events: which pages this shard can be matched against, told in order to whoever mirrors it.

Every event has the next sequence number of this life of the shard. A mirror that misses one asks for a snapshot,
which carries the number that it is valid at.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stored:
    """A page was published: it can be matched."""

    sequence: int
    name: bytes
    parent: bytes


@dataclass(frozen=True, slots=True)
class Removed:
    """A page was evicted or dropped: it cannot be matched any more."""

    sequence: int
    name: bytes


KvEvent = Stored | Removed


class EventLog:
    """Numbers events and hands each one out once, after the step that caused it was committed."""

    def __init__(self) -> None:
        self.last_sequence = 0
        self._pending: list[KvEvent] = []

    def stored(self, name: bytes, parent: bytes) -> None:
        """Note a published page."""
        self.last_sequence += 1
        self._pending.append(Stored(self.last_sequence, name, parent))

    def removed(self, name: bytes) -> None:
        """Note a page that went."""
        self.last_sequence += 1
        self._pending.append(Removed(self.last_sequence, name))

    def take(self) -> list[KvEvent]:
        """Events since the last call, in order."""
        events, self._pending = self._pending, []
        return events
