"""Client of the routers: any replica answers alike, so the next one is asked when one is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from katsura.api.common.v1 import common_pb2
from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.api.router.v1.router_service_pb2_grpc import RouterServiceStub
from katsura.domain.errors import UnavailableError
from katsura.rpc.context import CallContext
from katsura.sdk.connection import ATTEMPTS_MAX, REPEATED, Connection, backoff_s


class RouterClient:
    """Choices of models and shards.

    Args:
        connections: one per replica, in order of preference; at least one.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._connections = tuple(connections)
        self._stubs = [RouterServiceStub(connection.channel) for connection in connections]

    def acting_for(self, call: CallContext, timeout_s: float | None = None) -> RouterClient:
        """This client on behalf of `call` (our own processes only)."""
        return RouterClient([connection.acting_for(call, timeout_s) for connection in self._connections])

    async def choose_model(
        self, model: str, *, program_id: str = "", context_tokens: int = 0
    ) -> pb.ChooseModelResponse:
        """One deployment and revision for a name or alias; NOT_FOUND / MODEL_NOT_FOUND."""
        request = pb.ChooseModelRequest(
            model=model, program_id=program_id, needs=pb.ModelNeeds(context_tokens=context_tokens)
        )
        return cast(pb.ChooseModelResponse, await self._call("ChooseModel", request))

    async def choose_shard(
        self,
        *,
        revision_id: str,
        deployment: str,
        program_id: str,
        branch_key: str,
        page_hashes: Sequence[bytes],
        prompt_tokens: int,
        max_new_tokens: int,
        excluded_shard_ids: Sequence[str] = (),
    ) -> pb.ChooseShardResponse:
        """The shard of a step, with scores and the reason; UNAVAILABLE / NO_SHARD where none can take it."""
        request = pb.ChooseShardRequest(
            revision_id=revision_id,
            deployment=deployment,
            program_id=program_id,
            branch_key=branch_key,
            page_hashes=page_hashes,
            prompt_tokens=prompt_tokens,
            max_new_tokens=max_new_tokens,
            excluded_shard_ids=excluded_shard_ids,
        )
        return cast(pb.ChooseShardResponse, await self._call("ChooseShard", request))

    async def list_models(self) -> list[pb.Model]:
        """Every deployment, by name."""
        models: list[pb.Model] = []
        token = ""
        while True:
            page = cast(pb.ListModelsResponse, await self._call("ListModels", pb.ListModelsRequest(page_token=token)))
            models.extend(page.models)
            token = page.next_page_token
            if not token:
                return models

    async def get_router(self) -> pb.Router:
        """The router that answers, as it sees itself."""
        return cast(pb.GetRouterResponse, await self._call("GetRouter", pb.GetRouterRequest())).router

    async def report_outcome(
        self,
        decision_id: str,
        shard_id: str,
        *,
        program_id: str = "",
        usage: common_pb2.Usage | None = None,
        failed: bool = False,
    ) -> None:
        """Say what became of a decision; idempotent."""
        request = pb.ReportOutcomeRequest(
            decision_id=decision_id, shard_id=shard_id, program_id=program_id, usage=usage, failed=failed
        )
        await self._call("ReportOutcome", request)

    async def drain(self, timeout_ms: int) -> pb.DrainResponse:
        """Ask the first router to drain."""
        stub, connection = self._stubs[0], self._connections[0]
        request = pb.DrainRequest(timeout_ms=timeout_ms)
        return cast(pb.DrainResponse, await connection.unary(stub.Drain, "router.Drain", request))

    async def _call(self, name: str, request: object) -> object:
        """Ask one replica after the other, some rounds; a decision, good or bad, is a decision."""
        deadline = time.monotonic() + self._connections[0].timeout_s
        for turn in range(ATTEMPTS_MAX):
            for stub, connection in zip(self._stubs, self._connections, strict=True):
                try:
                    left_s = max(0.0, deadline - time.monotonic())
                    return await connection.unary(getattr(stub, name), f"router.{name}", request, left_s, attempts=1)
                except UnavailableError as error:
                    if error.reason not in REPEATED:
                        raise
                    failure = error
            pause = backoff_s(turn, failure)
            if turn + 1 == ATTEMPTS_MAX or time.monotonic() + pause >= deadline:
                break
            await asyncio.sleep(pause)
        raise failure
