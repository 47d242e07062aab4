"""A sequence: tokens, the pages that hold the KV of their beginning, and what is being done with it.

    open, generate                      the schedule admits it
IDLE -------------> FORKING | WAITING ------------------------> RUNNING
 ^                     (its parent has                            |  | pages ran out: its pages go,
 |                      computed enough)      <-------------------+--+ it is computed again later
 +----------------------------------------------------------------+ done
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto

from katsura.domain.pages import page_hashes


class Phase(Enum):
    """What is being done with a sequence."""

    IDLE = auto()
    """Nothing; it is kept open."""
    FORKING = auto()
    """It waits for its parent's KV."""
    WAITING = auto()
    """It waits for admission."""
    RUNNING = auto()
    """It is in the batch."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose tokens these are: a tenant, and the namespace under which the pages of that tenant are named."""

    tenant: str
    namespace: bytes


@dataclass(frozen=True, slots=True)
class Program:
    """One agent session; empty `program_id` stands for a program of its own.

    Attributes:
        program_id: its name within the tenant.
        priority: larger runs first.
    """

    program_id: str = ""
    tree_id: str = ""
    branch: str = ""
    priority: int = 0


@dataclass(slots=True, eq=False)
class Generation:
    """Tokens being drawn at the end of a sequence.

    Attributes:
        call: whose call this is; choice: which of its answers.
        new_tokens_max: tokens of the answer, those of `drawn_before` included.
        stop_ids: ids that end it.
        drawn_before: tokens of the answer that were drawn on another shard.
        drawn: tokens of the answer so far.
        prompt_tokens: tokens before the answer; cached_tokens: those whose KV was there (-1: not admitted yet).
    """

    call: int
    choice: int
    new_tokens_max: int
    stop_ids: frozenset[int]
    drawn_before: int
    drawn: int
    prompt_tokens: int
    cached_tokens: int = -1


@dataclass(slots=True, eq=False)
class Sequence:
    """One line of tokens on this shard.

    Attributes:
        order: how it is served: (-priority, first arrival of its program, own arrival).
        tokens: all of them; `computed`: how many have KV; `pages`: the pages that hold it, in order.
        published: full pages whose name is known to the index or was refused by it.
        cached_tokens: tokens found in cached pages when it was opened.
        calls: calls that wait until it is prefilled.
        parent, fork_length: a fork and how many tokens it shares.
        keep_s: how long it is kept untouched; None: as long as its generation.
        deadline_s: when what is being done with it fails; until_s: when it is let go if idle.
    """

    sequence_id: str
    owner: Owner
    program: Program
    order: tuple[int, int, int]
    tokens: list[int]
    keep_s: float | None
    phase: Phase = Phase.IDLE
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    published: int = 0
    cached_tokens: int = -1
    generation: Generation | None = None
    calls: list[int] = field(default_factory=list)
    parent: str = ""
    fork_length: int = 0
    deadline_s: float = math.inf
    until_s: float = math.inf
    _names: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed."""
        return len(self.tokens) - self.computed

    def names(self, page_tokens: int, count: int) -> list[bytes]:
        """Names of its first `count` full pages."""
        known = self._names
        if len(known) < count:
            fresh = self.tokens[len(known) * page_tokens : count * page_tokens]
            known += page_hashes(self.owner.namespace, fresh, page_tokens, known[-1] if known else b"")
        return known[:count]

    def cut(self, length: int, page_tokens: int) -> None:
        """Forget the tokens from `length` on (the pages are the caller's)."""
        del self.tokens[length:]
        self.computed = min(self.computed, length)
        del self._names[length // page_tokens :]
        self.published = min(self.published, length // page_tokens)
