"""Decisions over the view: the pure core's answers, with what the store remembers of programs and of load in flight.

A decision costs one read of the store (where the program ran last) and one write (where it runs now, what is in
flight). Both are hints with a short deadline: without the store the router decides from its last view.

Decisions on one deployment take turns, and each waits until the one before it has been read back from the store: of
requests that come at once, the second finds the first in the ledger, as it will in every replica of the router.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from katsura.domain.errors import InvalidArgumentError, NotFoundError, Reason, TemporaryError, UnavailableError
from katsura.domain.ids import DeploymentName, InstanceId, ProgramId
from katsura.domain.leases import ShardLease
from katsura.domain.pages import PAGE_HASH_BYTES
from katsura.domain.tenant import Tenant
from katsura.router.core.model import Model, ModelPick, models, pick_model
from katsura.router.core.pick import Pick, pick
from katsura.router.core.score import Ask, Candidate, score
from katsura.router.view import View
from katsura.state.hints import Affinity, Decided, Finished, HintStore
from katsura.telemetry import log, metrics, names

_LOG = log.get(__name__)
_DECISIONS = metrics.counter(names.ROUTER_DECISIONS, "Shards chosen.", ("deployment",))
_MATCHED = metrics.counter(names.ROUTER_MATCHED_TOKENS, "Prompt tokens that the chosen shard held.", ("deployment",))
_HINT_DEADLINE_S = 0.05
DECISION_TTL_S = 10
"""How long a decision may be used: longer than any hand-over, shorter than a page's usual life."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ShardAsk:
    """What ChooseShard was asked; see the proto."""

    deployment: DeploymentName
    revision_id: str
    program: ProgramId
    branch_key: str
    page_hashes: tuple[bytes, ...]
    prompt_tokens: int
    max_new_tokens: int
    excluded: frozenset[InstanceId]


@dataclass(frozen=True, slots=True)
class ShardDecision:
    """A chosen shard, and what the decision had seen."""

    decision_id: str
    shard: ShardLease
    pick: Pick
    kv_event_sequences: dict[str, int]


@dataclass(slots=True)
class _Turns:
    """Of one deployment: who decides, the decision before, until somebody has waited for it, and whether one was waited
    for in vain since a decision was last read back: a store that is silent delays one request, not a queue of them."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    last_id: str = ""
    is_silent: bool = False


class Decider:
    """Answers the three questions of the service."""

    def __init__(self, store: HintStore, view: View) -> None:
        self._store = store
        self._view = view
        self._turns: defaultdict[DeploymentName, _Turns] = defaultdict(_Turns)
        self.draining = False

    def models(self) -> tuple[Model, ...]:
        """Every deployment, by name. Raises UnavailableError (STORE_UNAVAILABLE) while nobody could know them."""
        self._refuse_if_blind()
        return models(self._view.shards.values(), self._view.endpoints.values())

    def choose_model(self, asked: str, context_tokens: int) -> tuple[str, ModelPick]:
        """A decision id and the model. Raises as `pick_model` and `models`, and UnavailableError (DRAINING)."""
        self._refuse_if_draining()
        return _new_id(), pick_model(asked, context_tokens, self.models())

    async def choose_shard(self, tenant: Tenant, asked: ShardAsk) -> ShardDecision:
        """The shard of a step.

        Raises:
            InvalidArgumentError: the page hashes do not fit the prompt. NotFoundError: MODEL_NOT_FOUND.
            UnavailableError: NO_SHARD (with the reason of each shard), EVICTED_ROLLOUT (its revision has none left, and
                another one serves), DRAINING, or STORE_UNAVAILABLE.
        """
        self._refuse_if_draining()
        self._refuse_if_blind()
        leases = self._leases(asked)
        _check(asked, leases)
        home = await self._home(tenant, asked)
        ask = Ask(
            prompt_tokens=asked.prompt_tokens,
            max_new_tokens=asked.max_new_tokens,
            branch_key=asked.branch_key or asked.program or b"".join(asked.page_hashes[:1]).hex(),
            home=(home.shard_id, home.incarnation) if home else None,
            excluded=asked.excluded,
        )
        turns = self._turns[asked.deployment]
        async with turns.lock:
            await self._read_back(turns)
            decision = self._decide(asked, leases, ask)
            self._view.awaited[decision.decision_id] = asyncio.Event()
            turns.last_id = decision.decision_id
        shard, found = decision.shard, decision.pick
        uncached = asked.prompt_tokens - found.chosen.matched_tokens
        note = Decided(decision.decision_id, shard.instance_id, shard.incarnation, uncached)
        await _hint(self._store.note_decision(note))
        if asked.program:
            there = Affinity(asked.deployment, shard.instance_id, shard.incarnation)
            await _hint(self._store.put_affinity(tenant, asked.program, there))
        _DECISIONS.labels(asked.deployment).inc()
        _MATCHED.labels(asked.deployment).inc(found.chosen.matched_tokens)
        _LOG.debug("chose a shard", decision=decision.decision_id, shard=shard.instance_id, reason=found.reason)
        return decision

    def _decide(self, asked: ShardAsk, leases: list[ShardLease], ask: Ask) -> ShardDecision:
        held = self._view.mirror.match(asked.page_hashes)
        sequences = self._view.mirror.sequences()
        candidates = [
            Candidate(lease, held.get(lease.instance_id, 0), self._view.ledger.of(lease.instance_id))
            for lease in leases
        ]
        try:
            found = pick(score(candidates, ask), ask)
        except UnavailableError as error:
            table = self._view.endpoints.get(asked.deployment)
            if table is None or table.revision.revision_id == asked.revision_id:
                raise
            raise UnavailableError(
                f"{asked.deployment} serves revision {table.revision.revision_id} now; ask anew ({error.message})",
                reason=Reason.EVICTED_ROLLOUT,
                retry_after_s=error.retry_after_s,
            ) from None
        chosen = next(lease for lease in leases if lease.instance_id == found.chosen.shard_id)
        return ShardDecision(_new_id(), chosen, found, {i.instance_id: sequences.get(i.instance_id, 0) for i in leases})

    async def report(
        self, tenant: Tenant, decision_id: str, program: ProgramId, shard_id: InstanceId, failed: bool
    ) -> None:
        """What became of a decision; a shard that failed is no longer the program's own. Idempotent."""
        await _hint(self._store.note_decision(Finished(decision_id)))
        if failed and program:
            await _hint(self._store.drop_affinity(tenant, program, shard_id))

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise UnavailableError("this router is draining; ask another one", reason=Reason.DRAINING)

    def _refuse_if_blind(self) -> None:
        """A router that was started while the store is away knows no model; it must not say that there is none."""
        if not self._view.caught_up.is_set():
            raise UnavailableError(
                "this router has not read the store yet; ask again in a moment", reason=Reason.STORE_UNAVAILABLE
            )

    def _leases(self, asked: ShardAsk) -> list[ShardLease]:
        mine = [lease for lease in self._view.shards.values() if lease.revision.deployment == asked.deployment]
        if not mine and asked.deployment not in self._view.endpoints:
            known = ", ".join(model.name for model in self.models()) or "none yet"
            raise NotFoundError(
                f"deployment {asked.deployment!r} does not exist; there are: {known}",
                reason=Reason.MODEL_NOT_FOUND,
                field="deployment",
            )
        return [lease for lease in mine if lease.revision.revision_id == asked.revision_id]

    async def _home(self, tenant: Tenant, asked: ShardAsk) -> Affinity | None:
        if not asked.program:
            return None
        found = await _hint(self._store.get_affinity(tenant, asked.program))
        return found if found is not None and found.deployment == asked.deployment else None

    async def _read_back(self, turns: _Turns) -> None:
        """Wait until the view has the decision before; where the store is slow or gone, not for long."""
        last_id, turns.last_id = turns.last_id, ""
        event = self._view.awaited.get(last_id)
        if event is None:
            return
        try:
            if not (event.is_set() or turns.is_silent or self._view.stale_s):
                await _hint(event.wait())
            turns.is_silent = not event.is_set()
        finally:
            self._view.awaited.pop(last_id, None)


async def _hint(call: Awaitable[T]) -> T | None:
    """The answer, or None where the store has none in time: hints may be lost, decisions may not wait for them."""
    try:
        async with asyncio.timeout(_HINT_DEADLINE_S):
            return await call
    except (TimeoutError, TemporaryError) as error:
        _LOG.debug("decided without a hint", why=str(error) or "no answer in time")
        return None


def _check(asked: ShardAsk, leases: list[ShardLease]) -> None:
    if asked.prompt_tokens < 1:
        raise InvalidArgumentError("prompt_tokens: a prompt has at least one token", field="prompt_tokens")
    if asked.max_new_tokens < 0:
        raise InvalidArgumentError("max_new_tokens: must not be negative", field="max_new_tokens")
    if any(len(page) != PAGE_HASH_BYTES for page in asked.page_hashes):
        raise InvalidArgumentError(f"page_hashes: each has {PAGE_HASH_BYTES} bytes", field="page_hashes")
    if leases and len(asked.page_hashes) * leases[0].revision.page_tokens > asked.prompt_tokens:
        raise InvalidArgumentError(
            f"page_hashes: {len(asked.page_hashes)} pages of {leases[0].revision.page_tokens} tokens are more than the "
            f"prompt's {asked.prompt_tokens} tokens; hash full pages only",
            field="page_hashes",
        )


def _new_id() -> str:
    return secrets.token_hex(8)
