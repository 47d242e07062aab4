"""`/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.domain.errors import NotFoundError, Reason
from katsura.gateway.deps import Deps
from katsura.gateway.incoming import Doorkeeper, caller_of


def models_routes(deps: Deps, door: Doorkeeper) -> APIRouter:
    """The routes, over `deps`."""
    router = APIRouter(tags=["models"])

    async def served(request: Request) -> list[pb.Model]:
        caller = await caller_of(request, deps, door)
        return await deps.router.acting_for(caller.call, caller.deadline.left_s()).list_models()

    @router.get("/v1/models", response_model=None)
    async def list_models(request: Request) -> Response:
        """Every deployment."""
        return JSONResponse({"object": "list", "data": [_shown(model) for model in await served(request)]})

    @router.get("/v1/models/{name:path}", response_model=None)
    async def get_model(request: Request, name: str) -> Response:
        """One deployment by name or alias."""
        for model in await served(request):
            if name == model.name or name in model.aliases:
                return JSONResponse(_shown(model))
        raise NotFoundError(f"there is no model {name!r}", field="model", reason=Reason.MODEL_NOT_FOUND)

    return router


def _shown(model: pb.Model) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.create_time_s,
        "owned_by": "katsura",
        "aliases": list(model.aliases),
        "context_tokens": model.revision.context_tokens,
        "ready": not model.not_ready_reason,
        "not_ready_reason": model.not_ready_reason or None,
    }
