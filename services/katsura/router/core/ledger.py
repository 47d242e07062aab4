"""Load in flight: what routers have sent to shards that the shards' own figures do not count yet.

Decision (issue 3, point 9): the ledger is **shared**. Every replica appends its decisions to one log in the hints store
and counts only what it reads back from there, its own included; so two replicas that have read alike score alike, and
no figure lives in one process alone. A decision counts until its shard's lease, stamped by the store's clock, is
`SETTLE_MS` younger than it (the shard then counts it itself), or until its outcome is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.leases import ShardLease

SETTLE_MS = 250
"""Time from a decision until the request is surely in the shard's own figures."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A decision: tokens that the shard has to prefill, and the store's clock when it was noted."""

    shard_id: InstanceId
    incarnation: Incarnation
    prefill_tokens: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class InFlight:
    """Sum over the entries of one shard."""

    requests: int = 0
    prefill_tokens: int = 0


class Ledger:
    """All entries that still count, by shard."""

    def __init__(self) -> None:
        self._entries: dict[InstanceId, dict[str, Entry]] = {}
        self._shard_of: dict[str, InstanceId] = {}

    def decided(self, decision_id: str, entry: Entry) -> None:
        """A request was sent."""
        self.finished(decision_id)
        self._entries.setdefault(entry.shard_id, {})[decision_id] = entry
        self._shard_of[decision_id] = entry.shard_id

    def finished(self, decision_id: str) -> None:
        """It ended; a decision that no longer counts is no error."""
        shard = self._shard_of.pop(decision_id, None)
        if shard is not None:
            del self._entries[shard][decision_id]

    def settle(self, lease: ShardLease) -> None:
        """Drop what this lease counts itself, and what an earlier life of the shard was sent."""
        for decision_id, entry in tuple(self._entries.get(lease.instance_id, {}).items()):
            if entry.incarnation != lease.incarnation or entry.at_ms + SETTLE_MS <= lease.put_ms:
                self.finished(decision_id)

    def forget(self, shard: InstanceId) -> None:
        """The shard is gone."""
        for decision_id in self._entries.pop(shard, {}):
            del self._shard_of[decision_id]

    def of(self, shard: InstanceId) -> InFlight:
        """What is in flight to `shard`."""
        mine = self._entries.get(shard, {}).values()
        return InFlight(len(mine), sum(entry.prefill_tokens for entry in mine))
