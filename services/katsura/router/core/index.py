"""Which shards hold which pages: an inverted index from page hash to a bitmask of shards.

A hash covers all tokens before its page (`katsura.domain.pages`), so the longest held prefix of a chain is found by one
walk that drops shards from the mask as they miss a page: a handful of integer operations per page, whatever the number
of shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from katsura.domain.ids import InstanceId


class PrefixIndex:
    """Pages of all shards."""

    def __init__(self) -> None:
        self._masks: dict[bytes, int] = {}
        self._slots: dict[InstanceId, int] = {}
        self._pages: dict[InstanceId, set[bytes]] = {}

    def add(self, shard: InstanceId, hashes: Iterable[bytes]) -> None:
        """`shard` holds these pages now."""
        bit = 1 << self._slot(shard)
        pages = self._pages[shard]
        for page in hashes:
            pages.add(page)
            self._masks[page] = self._masks.get(page, 0) | bit

    def remove(self, shard: InstanceId, hashes: Iterable[bytes]) -> None:
        """`shard` holds these pages no more; one that it never held is no error."""
        if shard not in self._slots:
            return
        keep = ~(1 << self._slots[shard])
        pages = self._pages[shard]
        for page in hashes:
            pages.discard(page)
            left = self._masks.get(page, 0) & keep
            if left:
                self._masks[page] = left
            else:
                self._masks.pop(page, None)

    def forget(self, shard: InstanceId) -> None:
        """`shard` holds nothing, and its bit may be given to another one."""
        self.remove(shard, tuple(self._pages.get(shard, ())))
        self._pages.pop(shard, None)
        self._slots.pop(shard, None)

    def page_count(self, shard: InstanceId) -> int:
        """Pages that `shard` holds."""
        return len(self._pages.get(shard, ()))

    def match(self, chain: Sequence[bytes]) -> dict[InstanceId, int]:
        """Leading pages of `chain` that each shard holds; shards that miss the first page are left out."""
        depths: dict[int, int] = {}
        alive = (1 << (max(self._slots.values(), default=-1) + 1)) - 1
        for depth, page in enumerate(chain):
            held = self._masks.get(page, 0) & alive
            _note(depths, alive & ~held, depth)
            alive = held
            if not alive:
                break
        _note(depths, alive, len(chain))
        return {shard: depths[slot] for shard, slot in self._slots.items() if depths.get(slot, 0) > 0}

    def _slot(self, shard: InstanceId) -> int:
        if shard not in self._slots:
            taken = set(self._slots.values())
            self._slots[shard] = next(slot for slot in range(len(taken) + 1) if slot not in taken)
            self._pages[shard] = set()
        return self._slots[shard]


def _note(depths: dict[int, int], mask: int, depth: int) -> None:
    while mask:
        low = mask & -mask
        depths[low.bit_length() - 1] = depth
        mask ^= low
