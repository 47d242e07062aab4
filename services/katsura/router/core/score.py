"""What a request would cost on each shard, in predicted seconds to its first token. One unit, no weights to tune.

cost = wait + prefill + decode - affinity

wait      what is queued there and in flight to it is prefilled first, at the shard's measured rate; if its free
          pages do not suffice, pages come back as fast as the running batch fills them (Little's law)
prefill   tokens that it does not hold. Pages that more than half of the shards hold (a system prompt) are charged
          to nobody: they would draw everything to their holders, while one prefill replicates them
decode    each chunk of our prefill shares its step with the running batch
affinity  a program's own shard holds a tail of pages that no event has told yet
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median

from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.leases import ShardLease
from katsura.router.core.ledger import InFlight

LOAD_FACTOR = 1.25
"""Bounded load: nobody takes more than this times the mean ..."""
LOAD_SLACK = 4
"""... plus this many requests, which a batch absorbs almost for free."""
CHUNK_TOKENS = 256
"""Tokens of prefill that share one step with the running batch, about."""
AFFINITY_TOKENS = 256
"""Tokens of a program's tail that its shard holds before the events say so, about."""
RATE_UNMEASURED = 1000.0
"""Tokens per second of prefill where no shard has measured its own; only ratios matter then."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be placed.

    Attributes:
        prompt_tokens: tokens of the prompt; max_new_tokens: that may follow.
        branch_key: siblings of one branch meet where nobody holds their prefix.
        home: shard and life where the program ran last, if it is known.
        excluded: shards that just failed this request.
    """

    prompt_tokens: int
    max_new_tokens: int
    branch_key: str
    home: tuple[InstanceId, Incarnation] | None = None
    excluded: frozenset[InstanceId] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live shard of the revision: its lease, the prompt's leading pages that it holds, what is in flight to it."""

    lease: ShardLease
    matched_pages: int
    in_flight: InFlight

    @property
    def request_count(self) -> int:
        """Requests that it carries or will carry in a moment."""
        return self.lease.load.running + self.lease.load.waiting + self.in_flight.requests


@dataclass(frozen=True, slots=True)
class Score:
    """Predicted seconds, and why the shard cannot be chosen (empty where it can)."""

    shard_id: InstanceId
    wait_s: float
    prefill_s: float
    decode_s: float
    affinity_s: float
    matched_tokens: int
    warm: bool
    excluded_reason: str = ""

    @property
    def cost_s(self) -> float:
        """Sum of the parts; smaller is better."""
        return self.wait_s + self.prefill_s + self.decode_s - self.affinity_s


def score(candidates: Sequence[Candidate], ask: Ask) -> tuple[Score, ...]:
    """The score of every candidate, by shard id. A pure function: equal arguments give equal bits."""
    rates = [c.lease.load.prefill_tokens_per_s for c in candidates if c.lease.load.prefill_tokens_per_s > 0]
    usual_rate = median(rates) if rates else RATE_UNMEASURED
    hot = _hot_tokens(candidates, ask)
    refused = {c.lease.instance_id: _refusal(c, ask) for c in candidates}
    able = [c for c in candidates if not refused[c.lease.instance_id]]
    limit = ceil(LOAD_FACTOR * (sum(c.request_count for c in able) + 1) / max(len(able), 1)) + LOAD_SLACK
    for c in able:
        if c.request_count + 1 > limit:
            refused[c.lease.instance_id] = f"carries {c.request_count} requests, bounded load allows {limit - 1}"
    ordered = sorted(candidates, key=lambda c: c.lease.instance_id)
    return tuple(_score(c, ask, hot, usual_rate, refused) for c in ordered)


def _score(c: Candidate, ask: Ask, hot_tokens: int, usual_rate: float, refused: Mapping[InstanceId, str]) -> Score:
    load, matched = c.lease.load, _matched_tokens(c, ask)
    rate = load.prefill_tokens_per_s or usual_rate
    step_s = load.step_ms / 1000
    uncached = ask.prompt_tokens - max(matched, hot_tokens)
    prefill_s = uncached / rate
    at_home = ask.home == (c.lease.instance_id, c.lease.incarnation)
    return Score(
        shard_id=c.lease.instance_id,
        wait_s=(load.waiting_tokens + c.in_flight.prefill_tokens) / rate + _pages_wait_s(c, ask, matched),
        prefill_s=prefill_s,
        decode_s=step_s * ceil(uncached / CHUNK_TOKENS) if load.running else 0.0,
        affinity_s=min(AFFINITY_TOKENS / rate, prefill_s) if at_home else 0.0,
        matched_tokens=matched,
        warm=at_home or matched > hot_tokens,
        excluded_reason=refused[c.lease.instance_id],
    )


def _matched_tokens(c: Candidate, ask: Ask) -> int:
    """A match stops one token short of the prompt: its last token is always computed."""
    page = c.lease.revision.page_tokens
    return min(c.matched_pages, max(ask.prompt_tokens - 1, 0) // page) * page


def _hot_tokens(candidates: Sequence[Candidate], ask: Ask) -> int:
    """Leading tokens that more than half of the candidates hold."""
    held = sorted((_matched_tokens(c, ask) for c in candidates), reverse=True)
    return held[len(held) // 2] if held else 0


def _pages_needed(c: Candidate, ask: Ask, matched_tokens: int) -> int:
    return ceil((ask.prompt_tokens + ask.max_new_tokens - matched_tokens) / c.lease.revision.page_tokens)


def _pages_wait_s(c: Candidate, ask: Ask, matched_tokens: int) -> float:
    """Seconds until the missing pages come back: each running sequence fills one page per page_tokens steps."""
    load = c.lease.load
    missing = _pages_needed(c, ask, matched_tokens) - load.free_pages
    if load.page_count == 0 or missing <= 0 or load.running == 0:
        return 0.0
    return missing * c.lease.revision.page_tokens * load.step_ms / 1000 / load.running


def _refusal(c: Candidate, ask: Ask) -> str:
    lease = c.lease
    if lease.instance_id in ask.excluded:
        return "just failed this request"
    if lease.draining:
        return "is draining"
    if not lease.ready:
        return f"is not ready: {lease.not_ready_reason or 'it has not said why'}"
    if lease.load.page_count and _pages_needed(c, ask, 0) > lease.load.page_count:
        return f"its {lease.load.page_count} pages cannot hold the prompt and its answer"
    return ""
