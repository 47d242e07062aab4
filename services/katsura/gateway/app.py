"""The HTTP app: routes over collaborators, and OpenAI's envelope around whatever goes wrong."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from katsura.gateway.boundary import Boundary
from katsura.gateway.core.envelope import plain_envelope
from katsura.gateway.deps import Deps
from katsura.gateway.incoming import Doorkeeper
from katsura.gateway.routes.chat import chat_routes
from katsura.gateway.routes.models import models_routes
from katsura.gateway.routes.ops import ops_routes
from katsura.gateway.routes.responses import responses_routes
from katsura.gateway.routes.sessions import sessions_routes

_CODES = {404: "route_not_found", 405: "method_not_allowed"}


def create_app(deps: Deps) -> FastAPI:
    """The ASGI app over `deps`. It starts nothing: connections and background work belong to the caller."""
    # The documentation pages of FastAPI load scripts from elsewhere; the schema alone is served.
    app = FastAPI(title="Katsura", docs_url=None, redoc_url=None, redirect_slashes=False)
    door = Doorkeeper(deps.config, deps.tenants, deps.clock)
    for routes in (
        chat_routes(deps, door),
        responses_routes(deps, door),
        models_routes(deps, door),
        sessions_routes(deps, door),
        ops_routes(deps),
    ):
        app.include_router(routes)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Boundary, new_id=deps.token)
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown routes and wrong methods, in the same envelope as every other error."""
    if not isinstance(error, HTTPException):
        raise error
    status = error.status_code
    message = {
        404: f"there is no {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
    }.get(status, str(error.detail))
    return JSONResponse(plain_envelope(status, message, _CODES.get(status)), status, error.headers)
