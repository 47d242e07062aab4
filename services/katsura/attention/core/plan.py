"""A step as plain data: what the schedule decides, what the runner executes, what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from katsura.attention.core.sequence import Program
from katsura.domain.errors import KatsuraError


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence in one step.

    Attributes:
        sequence_id: which sequence.
        start: position of the first token; tokens: the new ones.
        pages: its page table, covering `start + len(tokens)` positions.
        draws: whether the token after the last one is drawn.
    """

    sequence_id: str
    start: int
    tokens: tuple[int, ...]
    pages: tuple[int, ...]
    draws: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: first the page copies in order, then the rows (decodes before prefills)."""

    step: int
    copies: tuple[tuple[int, int], ...]
    rows: tuple[Row, ...]

    @property
    def token_count(self) -> int:
        """Tokens that the step computes."""
        return sum(len(row.tokens) for row in self.rows)


class Finish(Enum):
    """Why an answer ended."""

    STOP = auto()
    LENGTH = auto()
    EVICTED = auto()


@dataclass(frozen=True, slots=True)
class SequenceView:
    """A sequence as its owner sees it; `idle_s`: seconds until it is let go."""

    sequence_id: str
    program: Program
    token_count: int
    computed_tokens: int
    cached_tokens: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """A call got its sequences."""

    call: int
    sequences: tuple[SequenceView, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The first sequence of a generation is in the batch."""

    call: int
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Drew:
    """A token of an answer; `finish` where it is the last one. `position` counts from the answer's beginning."""

    call: int
    choice: int
    position: int
    sequence_id: str
    token: int
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer ended without another token."""

    call: int
    choice: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed."""

    call: int
    error: KatsuraError


Outcome = Opened | Admitted | Drew | Ended | Failed


@dataclass(frozen=True, slots=True)
class Load:
    """What a shard carries right now."""

    page_count: int
    free_page_count: int
    cached_page_count: int
    running_count: int
    waiting_count: int
    waiting_tokens: int
    sequence_count: int
