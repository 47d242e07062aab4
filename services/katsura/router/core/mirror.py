"""Following the KV events of every shard: what was applied, what is missing, when a snapshot is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.kv_events import KvBatch, KvCleared, KvRemoved, KvSnapshot, KvStored
from katsura.router.core.index import PrefixIndex


@dataclass(slots=True)
class _Followed:
    incarnation: Incarnation
    sequence: int = 0
    synced: bool = True
    base: int = -1
    """Sequence of the snapshot that it began with; the same one is of no use a second time."""


class KvMirror:
    """The pages of all shards, as far as their events were read.

    A shard whose events have a hole matches nothing until its snapshot is taken: a prefix that is believed cold costs
    a recomputation, one that is believed warm would draw requests to the wrong shard.
    """

    def __init__(self) -> None:
        self._index = PrefixIndex()
        self._shards: dict[InstanceId, _Followed] = {}

    def follow(self, shard: InstanceId, incarnation: Incarnation) -> bool:
        """Follow this life of a shard; True where it is a new one, whose events are to be read from the oldest kept."""
        known = self._shards.get(shard)
        if known is not None and known.incarnation == incarnation:
            return False
        self._index.forget(shard)
        self._shards[shard] = _Followed(incarnation)
        return True

    def apply(self, shard: InstanceId, batch: KvBatch) -> bool:
        """Take a batch; False where something before it is missing and a snapshot is needed.

        What was applied already, and batches of a life that is not followed, are ignored.
        """
        known = self._shards.get(shard)
        if known is None or known.incarnation != batch.incarnation:
            return True
        if known.synced and batch.sequence <= known.sequence:
            return True
        if not known.synced or batch.sequence != known.sequence + 1:
            known.synced = False
            self._index.forget(shard)
            return False
        for event in batch.events:
            match event:
                case KvStored(_, hashes):
                    self._index.add(shard, hashes)
                case KvRemoved(hashes):
                    self._index.remove(shard, hashes)
                case KvCleared():
                    self._index.forget(shard)
        known.sequence = batch.sequence
        return True

    def wants(self, shard: InstanceId, incarnation: Incarnation, sequence: int) -> bool:
        """Whether a snapshot taken after batch `sequence` of that life would help."""
        known = self._shards.get(shard)
        return known is not None and known.incarnation == incarnation and not known.synced and sequence > known.base

    def load(self, shard: InstanceId, snapshot: KvSnapshot) -> None:
        """Take a snapshot that `wants` asked for; read the shard's events again from the oldest kept."""
        self._index.forget(shard)
        self._index.add(shard, snapshot.hashes)
        self._shards[shard] = _Followed(snapshot.incarnation, snapshot.sequence, base=snapshot.sequence)

    def forget(self, shard: InstanceId) -> None:
        """The shard is gone."""
        self._index.forget(shard)
        self._shards.pop(shard, None)

    def match(self, chain: Sequence[bytes]) -> dict[InstanceId, int]:
        """Leading pages of `chain` that each shard holds."""
        return self._index.match(chain)

    def sequences(self) -> dict[str, int]:
        """Last batch applied of each shard."""
        return {shard: known.sequence for shard, known in sorted(self._shards.items())}
