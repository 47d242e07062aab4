"""RouterService: protos to decisions and back, nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import duration_pb2

from katsura.api.common.v1 import common_pb2
from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.api.router.v1 import router_service_pb2_grpc as pb_grpc
from katsura.domain.errors import InvalidArgumentError
from katsura.domain.ids import DeploymentName, InstanceId, ProgramId
from katsura.domain.leases import Revision, RouterLease
from katsura.domain.shape import Numerics
from katsura.domain.tables import ExpertTable
from katsura.router.coordinator import Coordinator
from katsura.router.core.model import Model
from katsura.router.core.score import Score
from katsura.router.decisions import DECISION_TTL_S, Decider, ShardAsk
from katsura.router.view import View
from katsura.rpc.context import current_tenant, require_internal
from katsura.telemetry import metrics, names, trace

_PAGE_SIZE = 100
_NUMERICS = {
    Numerics.INVARIANT: common_pb2.NUMERICS_INVARIANT,
    Numerics.FAST: common_pb2.NUMERICS_FAST,
}
_SECONDS = metrics.histogram(names.ROUTER_DECISION_SECONDS, "Seconds of a decision.", ("question",))


class RouterServicer(pb_grpc.RouterServiceServicer):
    """See the proto.

    Args:
        decider: answers.
        view: what GetRouter shows; coordinator: likewise.
        lease: this router's lease as it stands.
        active_count: calls being served, this one included.
        drain: refuses new decisions and gives coordination back. Decisions that run end by themselves within a moment:
            nothing in them waits longer than a hint's deadline.
    """

    def __init__(
        self,
        decider: Decider,
        view: View,
        coordinator: Coordinator,
        lease: Callable[[], RouterLease],
        active_count: Callable[[], int],
        drain: Callable[[], Awaitable[None]],
    ) -> None:
        self._decider = decider
        self._view = view
        self._coordinator = coordinator
        self._lease = lease
        self._active_count = active_count
        self._drain = drain

    async def ChooseModel(self, request: pb.ChooseModelRequest, context: Any) -> pb.ChooseModelResponse:  # noqa: N802
        """Name or alias to deployment and revision."""
        with _SECONDS.labels("model").time():
            decision_id, found = self._decider.choose_model(request.model, request.needs.context_tokens)
        return pb.ChooseModelResponse(
            decision_id=decision_id,
            model=_model(found.model),
            scores=[pb.ModelScore(name=s.name, score=s.score, reason=s.reason) for s in found.scores],
            reason=found.reason,
        )

    async def ChooseShard(self, request: pb.ChooseShardRequest, context: Any) -> pb.ChooseShardResponse:  # noqa: N802
        """The shard of a step."""
        asked = ShardAsk(
            deployment=DeploymentName(request.deployment),
            revision_id=request.revision_id,
            program=ProgramId(request.program_id),
            branch_key=request.branch_key,
            page_hashes=tuple(request.page_hashes),
            prompt_tokens=request.prompt_tokens,
            max_new_tokens=request.max_new_tokens,
            excluded=frozenset(map(InstanceId, request.excluded_shard_ids)),
        )
        with _SECONDS.labels("shard").time(), trace.span(names.SPAN_DECIDE) as span:
            found = await self._decider.choose_shard(current_tenant(), asked)
            chosen = found.pick.chosen
            attributes: dict[str, str | int] = {
                names.SHARD: chosen.shard_id,
                names.CACHED_TOKENS: chosen.matched_tokens,
                names.REASON: found.pick.reason,
            }
            span.set_attributes(attributes)
        return pb.ChooseShardResponse(
            decision_id=found.decision_id,
            shard=pb.ShardEndpoint(
                shard_id=chosen.shard_id, incarnation=found.shard.incarnation, address=found.shard.address
            ),
            matched_tokens=chosen.matched_tokens,
            scores=[_score(s) for s in found.pick.scores],
            reason=found.pick.reason,
            kv_event_sequences=found.kv_event_sequences,
            ttl=duration_pb2.Duration(seconds=DECISION_TTL_S),
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """By name."""
        if request.page_size < 0:
            raise InvalidArgumentError("page_size: must not be negative", field="page_size")
        size = min(request.page_size or _PAGE_SIZE, _PAGE_SIZE)
        rest = [model for model in self._decider.models() if model.name > request.page_token]
        return pb.ListModelsResponse(
            models=[_model(model) for model in rest[:size]],
            next_page_token=rest[size - 1].name if len(rest) > size else "",
        )

    async def GetRouter(self, request: pb.GetRouterRequest, context: Any) -> pb.GetRouterResponse:  # noqa: N802
        """This replica as it sees itself."""
        require_internal()
        lease, held = self._lease(), self._coordinator.coordination
        tables = [_table(t, "COMMITTED") for both in self._view.tables.values() if (t := both.committed)]
        tables += [_table(t, "PREPARED") for both in self._view.tables.values() if (t := both.prepared)]
        router = pb.Router(
            router_id=lease.instance_id,
            incarnation=lease.incarnation,
            coordinator=held is not None and held.mine,
            fencing_token=held.fence.token if held is not None and held.mine else 0,
            coordinator_id=held.fence.holder if held is not None else "",
            tables=tables,
            kv_event_sequences=self._view.mirror.sequences(),
            drain=self._drain_state(),
        )
        return pb.GetRouterResponse(router=router)

    async def ReportOutcome(  # noqa: N802
        self, request: pb.ReportOutcomeRequest, context: Any
    ) -> pb.ReportOutcomeResponse:
        """What became of a decision."""
        await self._decider.report(
            current_tenant(),
            request.decision_id,
            ProgramId(request.program_id),
            InstanceId(request.shard_id),
            request.failed,
        )
        return pb.ReportOutcomeResponse()

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:  # noqa: N802
        """Refuse new decisions and give coordination back."""
        require_internal()
        await self._drain()
        return pb.DrainResponse(drain=self._drain_state())

    def _drain_state(self) -> common_pb2.DrainState:
        return common_pb2.DrainState(draining=self._decider.draining, active_count=max(self._active_count() - 1, 0))


def _revision(revision: Revision) -> common_pb2.Revision:
    return common_pb2.Revision(
        deployment=revision.deployment,
        revision_id=revision.revision_id,
        weights_digest=revision.weights_digest,
        numerics=_NUMERICS[revision.numerics],
        dtype=revision.dtype,
        page_tokens=revision.page_tokens,
        context_tokens=revision.context_tokens,
        tokenizer_digest=revision.tokenizer_digest,
    )


def _model(model: Model) -> pb.Model:
    table = model.table
    return pb.Model(
        name=table.deployment,
        aliases=table.aliases,
        revision=_revision(table.revision),
        model_path=table.model_path,
        ready_shard_count=len(table.shards),
        create_time_s=table.create_ms // 1000,
        not_ready_reason=model.not_ready_reason,
    )


def _score(score: Score) -> pb.ShardScore:
    return pb.ShardScore(
        shard_id=score.shard_id,
        cost_s=score.cost_s,
        wait_s=score.wait_s,
        prefill_s=score.prefill_s,
        decode_s=score.decode_s,
        affinity_s=score.affinity_s,
        matched_tokens=score.matched_tokens,
        excluded_reason=score.excluded_reason,
    )


def _table(table: ExpertTable, phase: str) -> pb.ExpertTable:
    return pb.ExpertTable(
        deployment=table.deployment,
        revision_id=table.revision_id,
        epoch=table.epoch,
        phase=phase,
        assignments=[
            pb.ExpertAssignment(
                member_id=a.member_id,
                rank=a.rank,
                primary_groups=sorted({group for r in a.primary for group in r.groups}),
                alternate_groups=sorted({group for r in a.alternate for group in r.groups}),
            )
            for a in table.assignments
        ],
    )
