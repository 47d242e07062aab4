"""Which model a step runs on. By name or alias today; the shape is that of a policy: candidates, filters, scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from katsura.domain.errors import (
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    Reason,
    UnavailableError,
)
from katsura.domain.ids import DeploymentName
from katsura.domain.leases import ShardLease
from katsura.domain.tables import EndpointTable
from katsura.router.core.endpoints import describe

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Model:
    """A deployment as it can be chosen; `not_ready_reason` is empty where it can serve now."""

    table: EndpointTable
    not_ready_reason: str

    @property
    def name(self) -> DeploymentName:
        """Name of the deployment."""
        return self.table.deployment


@dataclass(frozen=True, slots=True)
class ModelScore:
    """How a candidate did: larger is better."""

    name: DeploymentName
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class ModelPick:
    """The choice with every candidate, best first."""

    model: Model
    scores: tuple[ModelScore, ...]
    reason: str


def models(leases: Iterable[ShardLease], tables: Iterable[EndpointTable]) -> tuple[Model, ...]:
    """Every deployment that a table or a live shard names, by name."""
    by_name = {table.deployment: table for table in tables}
    shards: dict[DeploymentName, list[ShardLease]] = {name: [] for name in by_name}
    for lease in leases:
        shards.setdefault(lease.revision.deployment, []).append(lease)
    return tuple(_model(name, shards[name], by_name.get(name)) for name in sorted(shards))


def _model(name: DeploymentName, leases: Sequence[ShardLease], table: EndpointTable | None) -> Model:
    found = describe(name, leases, table)
    mine = [lease for lease in leases if lease.revision.revision_id == found.revision.revision_id]
    return Model(found, "" if found.shards else _why_not(mine))


def _why_not(leases: Sequence[ShardLease]) -> str:
    if not leases:
        return "no shard is registered"
    return "; ".join(
        f"{lease.instance_id} is draining"
        if lease.draining
        else f"{lease.instance_id} is not ready: {lease.not_ready_reason or 'it has not said why'}"
        for lease in leases
    )


def pick_model(asked: str, context_tokens: int, candidates: Sequence[Model]) -> ModelPick:
    """Choose the model that `asked` names.

    Args:
        asked: name, alias, or "auto".
        context_tokens: tokens of prompt and answer that it must hold; 0 asks for nothing.
        candidates: from `models`.

    Raises:
        InvalidArgumentError: nothing is named, or "auto" has several to choose from. NotFoundError: MODEL_NOT_FOUND.
        OutOfRangeError: CONTEXT_TOO_LONG. UnavailableError: NO_SHARD, the model exists but cannot serve now.
    """
    names = ", ".join(model.name for model in candidates) or "none yet"
    if not asked:
        raise InvalidArgumentError(f"model: name one of: {names}", field="model")
    if asked == AUTO and len(candidates) > 1:
        raise InvalidArgumentError(
            f'model: "auto" needs a policy, or exactly one deployment; name one of: {names}', field="model"
        )
    found = next((m for m in candidates if m.name == asked), None) or next(
        (m for m in candidates if asked == AUTO or asked in m.table.aliases), None
    )
    if found is None:
        raise NotFoundError(
            f"model {asked!r} does not exist; there are: {names}", reason=Reason.MODEL_NOT_FOUND, field="model"
        )
    if context_tokens > found.table.revision.context_tokens:
        raise OutOfRangeError(
            f"{found.name} holds {found.table.revision.context_tokens} tokens of prompt and answer together, "
            f"{context_tokens} were asked for; shorten the prompt or lower max_tokens",
            field="needs.context_tokens",
            metadata={"context_tokens": str(found.table.revision.context_tokens)},
        )
    if found.not_ready_reason:
        raise UnavailableError(
            f"{found.name} cannot serve now: {found.not_ready_reason}", reason=Reason.NO_SHARD, retry_after_s=1.0
        )
    reason = _how(asked, found)
    others = (ModelScore(m.name, 0.0, "another model was asked for") for m in candidates if m is not found)
    return ModelPick(found, (ModelScore(found.name, 1.0, reason), *others), f"{found.name}: {reason}.")


def _how(asked: str, found: Model) -> str:
    if asked == found.name:
        return "asked for by name"
    return "the only deployment" if asked == AUTO else f"asked for by its alias {asked}"
