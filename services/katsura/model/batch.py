"""One step of a continuous batch as plain data: what the shard's core plans and the decoder computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """New tokens of one sequence.

    Attributes:
        start: position of the first new token (the length already in KV).
        count: new tokens, at least 1: 1 in decode, a chunk in prefill.
        pages: arena page ids of the sequence from its beginning; they must cover `start + count` positions.
        logit_rows: which of the new tokens need logits, as ascending offsets in `range(count)`.
    """

    start: int
    count: int
    pages: Sequence[int]
    logit_rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The sequences of one step; rows of the residual follow their order."""

    sequences: Sequence[SequenceStep]

    @property
    def token_count(self) -> int:
        """Rows of the residual stream."""
        return sum(sequence.count for sequence in self.sequences)

    def positions(self) -> list[int]:
        """Position of each row."""
        return [p for s in self.sequences for p in range(s.start, s.start + s.count)]

    def logit_rows(self) -> list[int]:
        """Rows of the residual that need logits, in batch order."""
        rows, first = [], 0
        for sequence in self.sequences:
            rows += [first + offset for offset in sequence.logit_rows]
            first += sequence.count
        return rows
