"""Which shard, from the scores, and why in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from katsura.domain.errors import Reason, UnavailableError
from katsura.domain.ids import InstanceId
from katsura.domain.units import human_seconds
from katsura.router.core.score import Ask, Score

COLD_CHOICES = 3
"""A cold prefix goes to one of this many lightest shards, by its branch's name."""
COLD_SPREAD = 1.25
"""... if they cost at most this times the lightest one ..."""
COLD_SPREAD_S = 0.01
"""... plus this."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The choice: every score, the chosen one first, then the others from best to worst, those excluded last."""

    scores: tuple[Score, ...]
    reason: str

    @property
    def chosen(self) -> Score:
        """The chosen shard."""
        return self.scores[0]


def rendezvous(branch_key: str, shard: InstanceId) -> bytes:
    """Highest-random-weight hash: each key orders the shards anew, and losing a shard moves only its own keys."""
    return blake2b(f"{len(branch_key)}:{branch_key}{shard}".encode(), digest_size=8).digest()


def pick(scores: Sequence[Score], ask: Ask) -> Pick:
    """Choose a shard.

    The cheapest one, if any shard is warm for this prompt. Where none is, the branch's name decides among the lightest
    few, so that siblings that arrive together meet on one shard without being told.

    Raises:
        UnavailableError: NO_SHARD; the message lists why not, for each.
    """
    scores = sorted(scores, key=lambda s: s.shard_id)
    able = [s for s in scores if not s.excluded_reason]
    if not able:
        why = (
            "; ".join(f"{s.shard_id} {s.excluded_reason}" for s in scores) or "no shard of this revision is registered"
        )
        raise UnavailableError(f"no shard can take the request: {why}", reason=Reason.NO_SHARD, retry_after_s=1.0)
    able.sort(key=lambda s: (s.cost_s, rendezvous(ask.branch_key, s.shard_id)))
    chosen, reason = able[0], _why(able, ask)
    if len(able) > 1 and not any(s.warm for s in able):
        limit = able[0].cost_s * COLD_SPREAD + COLD_SPREAD_S
        light = [s for s in able[:COLD_CHOICES] if s.cost_s <= limit]
        chosen = max(light, key=lambda s: rendezvous(ask.branch_key, s.shard_id))
        reason = (
            f"no shard holds more of this prompt than most do, so the branch's name chose {chosen.shard_id} among the "
            f"{len(light)} lightest"
        )
    others = [s for s in able if s is not chosen] + [s for s in scores if s.excluded_reason]
    return Pick((chosen, *others), reason + ".")


def _why(able: Sequence[Score], ask: Ask) -> str:
    best = able[0]
    if len(able) == 1:
        return f"{best.shard_id} is the only shard that can take the request"
    home = ", the program's own shard," if best.affinity_s > 0 else ""
    mine, next_best = (human_seconds(max(found.cost_s, 0.0)) for found in able[:2])
    return (
        f"{best.shard_id}{home} holds {best.matched_tokens} of {ask.prompt_tokens} prompt tokens and should answer in "
        f"{mine}; {able[1].shard_id} would need {next_best}"
    )
