"""Pending writes that wait a moment for company: the checkpoint that usually follows them. One call carries both.

LangGraph hands over a task's writes and, once it has applied them, the next checkpoint, and waits for the latter.
Whoever offers writes is told that they are stored, or to store them himself; he waits `HOLD_S` at most, and where
nobody came for them he waits more and more rarely.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from katsura.adapters.checkpoints import Key
from katsura.api.memory.v1 import memory_pb2 as tree_pb

HOLD_S: Final = 0.02
"""Longest that writes wait: longer than LangGraph takes to apply them, and no harm beside what a task takes."""
_TAKEN_MAX: Final = 64
_RESTS_MAX: Final = 256
_REMEMBERED_MAX: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """Writes beside the checkpoint at `place`; `stored` is set once: False tells their owner to store them."""

    place: tuple[Key, str]
    writes: Sequence[tree_pb.Attachment]
    stored: Future[bool] = field(default_factory=Future)


class Company:
    """Offers that nobody has taken yet. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offers: dict[tuple[Key, str], list[Offer]] = {}
        self._vain: dict[Key, tuple[int, int]] = {}  # offers in vain, one after the other, and how many not to make now

    def offer(self, key: Key, checkpoint_id: str, writes: Sequence[tree_pb.Attachment]) -> Offer | None:
        """Writes for the checkpoint that comes after another; None where waiting would likely be in vain."""
        with self._lock:
            vain, rest = self._vain.get(key, (0, 0))
            if rest:
                self._vain[key] = vain, rest - 1
                return None
            made = Offer((key, checkpoint_id), writes)
            self._offers.setdefault(made.place, []).append(made)
            return made

    def take(self, key: Key, checkpoint_id: str) -> list[Offer]:
        """What waits for the checkpoint that comes now; set `stored` of each."""
        with self._lock:
            found = self._offers.pop((key, checkpoint_id), [])
            if found:
                self._vain.pop(key, None)
        for each in found[_TAKEN_MAX:]:
            each.stored.set_result(False)
        return found[:_TAKEN_MAX]

    def withdraw(self, offer: Offer) -> bool:
        """Take an offer back; False where somebody has taken it, who will say what became of it."""
        with self._lock:
            there = self._offers.get(offer.place, [])
            if offer not in there:
                return False
            there.remove(offer)
            if not there:
                del self._offers[offer.place]
            if len(self._vain) >= _REMEMBERED_MAX:
                self._vain.clear()
            vain = self._vain.get(offer.place[0], (0, 0))[0] + 1
            self._vain[offer.place[0]] = vain, min(2**vain, _RESTS_MAX)
            return True
