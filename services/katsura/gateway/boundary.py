"""What happens around every HTTP request: its ids, its trace, its errors.

Routes raise `KatsuraError`; the client gets OpenAI's envelope. Anything else that escapes is our bug: it is logged with
its traceback and answered 500 without details. Once a reply has begun its route ends it (a stream sends the error as an
event), so nothing is left to do here but to log. Messages of ours name ids and counts, never a prompt or a key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from katsura.domain.errors import CancelledError, InternalError, KatsuraError
from katsura.gateway.core.envelope import envelope, status_of
from katsura.telemetry import log, names, trace

_LOG = log.get(__name__)
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}\Z")


def error_reply(error: KatsuraError) -> JSONResponse:
    """The reply that tells a client of `error`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.code == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(envelope(error), status_of(error), headers)


class Boundary:
    """The one middleware; `new_id` makes ids for requests that bring none."""

    def __init__(self, app: ASGIApp, new_id: Callable[[], str]) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.match(given) else f"req-{self._new_id()}"
        scope.setdefault("state", {})["request_id"] = request_id
        sent = 0  # the status, once the reply has begun
        start_s = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                sent = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        span = trace.span(
            names.SPAN_HTTP,
            {names.HTTP_ROUTE: scope["path"], names.REQUEST: request_id},
            parent=headers.get("traceparent", ""),
            kind=SpanKind.SERVER,
        )
        with log.ids(request=request_id), span:
            error = await self._served(scope, receive, send_with_id)
            if error is not None and status_of(error) >= 500:
                _LOG.warning("a request failed", reason=error.reason.value, error=error.message)
            if error is not None and not sent:
                await error_reply(error)(scope, receive, send_with_id)
            tell = _LOG.debug if scope["path"] in _PROBES else _LOG.info
            tell(
                f"{scope['method']} {scope['path']}",
                status=sent if error is None else status_of(error),
                ms=round((time.perf_counter() - start_s) * 1000, 1),
            )

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> KatsuraError | None:
        try:
            await self._app(scope, receive, send)
        except KatsuraError as error:
            return error
        except (ClientDisconnect, asyncio.CancelledError) as gone:
            if isinstance(gone, asyncio.CancelledError):
                raise
            return CancelledError("the client went away")
        except Exception as bug:  # noqa: BLE001  # the last line of defence: logged, answered 500
            _LOG.error("a request failed by our own fault", exc=bug)
            return InternalError("internal error; the gateway's log has it under this request id")
        return None
