"""`/healthz`, `/readyz` and `/metrics`: for supervisors and dashboards, without a key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from katsura.domain.errors import KatsuraError
from katsura.gateway.core.envelope import public_message
from katsura.gateway.deps import Deps
from katsura.rpc.context import CallContext
from katsura.sdk import Connection
from katsura.telemetry import metrics

_CHECK_TIMEOUT_S = 2.0
_NOBODY = CallContext(None, internal=True)


def ops_routes(deps: Deps) -> APIRouter:
    """The routes, over `deps`."""
    router = APIRouter(tags=["ops"])

    @router.get("/healthz", response_model=None)
    async def healthz() -> Response:
        """This process lives."""
        return JSONResponse({"status": "ok", "instance": deps.config.instance_id})

    @router.get("/readyz", response_model=None)
    async def readyz(models: bool = True) -> Response:
        """Whether requests can be served, and every reason why not; `models=false` asks about this process's peers
        only, as a cluster does: a gateway without a model still says so better than a refused connection."""
        reasons = [reason for reason in await not_ready_reasons(deps) if models or reason["component"] != "models"]
        return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    @router.get("/metrics", response_model=None)
    async def get_metrics() -> Response:
        """Prometheus' text format."""
        return Response(metrics.render(), headers={"content-type": metrics.TEXT_FORMAT})

    return router


async def not_ready_reasons(deps: Deps) -> list[dict[str, str]]:
    """What is missing: `component` and `reason`; empty when ready. One router of several is enough."""
    routers = [peer for name, peer in deps.peers.items() if name.startswith("router")]
    checks = {
        "store": _said(deps.tenants.list_tenants()),
        "memory": _said(deps.peers["memory"].require_serving(_CHECK_TIMEOUT_S)),
        "router": _any_serves(routers),
        "models": _models(deps),
    }
    found = await asyncio.gather(*checks.values())
    return [{"component": name, "reason": reason} for name, reason in zip(checks, found, strict=True) if reason]


async def _said(check: Awaitable[object]) -> str:
    try:
        await check
    except KatsuraError as error:
        return public_message(error)
    return ""


async def _any_serves(routers: list[Connection]) -> str:
    found = await asyncio.gather(*(_said(peer.require_serving(_CHECK_TIMEOUT_S)) for peer in routers))
    return "" if any(not reason for reason in found) else "; ".join(found)


async def _models(deps: Deps) -> str:
    try:
        models = await deps.router.acting_for(_NOBODY, _CHECK_TIMEOUT_S).list_models()
    except KatsuraError as error:
        return public_message(error)
    if any(not model.not_ready_reason for model in models):
        return ""
    return "; ".join(f"{model.name}: {model.not_ready_reason}" for model in models) or "no model is registered"
