"""Reading a request: who sends it, for which session, until when, and its body."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from starlette.requests import Request

from katsura.domain.clock import Clock
from katsura.domain.errors import InvalidArgumentError, Reason, UnauthenticatedError
from katsura.domain.ids import DEFAULT_TENANT, checked_name
from katsura.domain.tenant import Tenant
from katsura.gateway.config import GatewayConfig
from katsura.gateway.core.access import bearer, is_local_request
from katsura.gateway.core.fields import Json
from katsura.gateway.deadline import Deadline
from katsura.gateway.deps import Deps
from katsura.gateway.turn import Caller
from katsura.rpc.context import CallContext
from katsura.state.tenants import KEY_PREFIX, TenantStore
from katsura.telemetry import log

KEY_CACHE_S = 2.0
"""How long a resolved key is believed: a revoked one is refused at most this much later."""
_KEY_CACHE_MAX = 4096
_DIGITS_MAX = 100
TIMEOUT_HEADER = "x-request-timeout-s"


class Doorkeeper:
    """Finds the tenant of a request."""

    def __init__(self, config: GatewayConfig, tenants: TenantStore, clock: Clock) -> None:
        self._allow_keyless = config.allow_keyless
        self._tenants = tenants
        self._clock = clock
        self._known: dict[str, tuple[Tenant, float]] = {}
        self._default: Tenant | None = None

    async def tenant(self, request: Request) -> Tenant:
        """The tenant of the request's key; without a key the default one, for local requests where that is allowed.

        A text that cannot be a key counts as none: OpenAI's client insists on sending something.

        Raises:
            UnauthenticatedError: there is no key, or nobody knows it.
        """
        key = bearer(request.headers.get("authorization"))
        if key.startswith(KEY_PREFIX) or (key and not self._allow_keyless):
            return await self._of_key(key)
        if not self._allow_keyless:
            raise UnauthenticatedError(
                "send an API key as 'Authorization: Bearer ksk_...'; 'katsura key create' makes one"
            )
        if not is_local_request(request.headers.get("host", ""), request.headers.get("origin")):
            raise UnauthenticatedError("without an API key, only programs on this machine are served")
        if self._default is None:
            self._default = await self._tenants.ensure_tenant(DEFAULT_TENANT)
        return self._default

    async def _of_key(self, key: str) -> Tenant:
        now = self._clock.monotonic_s()
        found = self._known.get(key)
        if found is not None and now < found[1]:
            return found[0]
        tenant = await self._tenants.resolve(key)
        if tenant is None:
            self._known.pop(key, None)
            raise UnauthenticatedError(
                "the API key is not known; 'katsura key create' makes one", reason=Reason.INVALID_CREDENTIAL
            )
        if len(self._known) >= _KEY_CACHE_MAX:
            self._known.clear()
        self._known[key] = (tenant, now + KEY_CACHE_S)
        return tenant


async def caller_of(request: Request, deps: Deps, doorkeeper: Doorkeeper, session_id: str = "") -> Caller:
    """Who calls and until when; the deadline counts from now, and log lines of the request carry the tenant."""
    tenant = await doorkeeper.tenant(request)
    log.bind(tenant=tenant.tenant_id)
    call = CallContext(tenant, internal=True, request_id=request.state.request_id)
    deadline = Deadline(deps.clock, timeout_of(request, deps.config.request_timeout_s))
    return in_session(Caller(call, deadline, f"w{deps.token()}"), session_id)


def in_session(caller: Caller, session_id: str) -> Caller:
    """`caller` at work in a session, which its calls, its routing and its log lines name; empty changes nothing."""
    if not session_id:
        return caller
    log.bind(session=session_id)
    return replace(caller, call=replace(caller.call, session_id=session_id))


def timeout_of(request: Request, longest_s: float) -> float:
    """Seconds that a request may take: what its header asks for, never more than `longest_s`."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return longest_s
    try:
        wanted = float(text)
    except ValueError:
        wanted = math.nan
    if not wanted > 0:
        raise InvalidArgumentError(
            f"{TIMEOUT_HEADER}: expected a number of seconds above 0, got {text!r}", field=TIMEOUT_HEADER
        )
    return min(wanted, longest_s)


def named_once(request: Request, header: str, metadata: Mapping[str, str], key: str) -> tuple[str, str]:
    """A name that comes by a header or by `metadata`, and how the client called the field; empty where it is absent."""
    by_header, by_body = request.headers.get(header, ""), metadata.get(key, "")
    if by_header and by_body and by_header != by_body:
        raise InvalidArgumentError(f"{header} and metadata.{key} name different things; send one", field=header)
    param = header if by_header else f"metadata.{key}"
    value = by_header or by_body
    return (checked_name(value, param), param) if value else ("", param)


async def json_body(request: Request, bytes_max: int) -> Json:
    """The body as JSON.

    Raises:
        InvalidArgumentError: it is larger than `bytes_max` (BODY_TOO_LARGE), not JSON, or nested beyond all reason.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > bytes_max:
        raise _too_large(bytes_max)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > bytes_max:
            raise _too_large(bytes_max)
    try:
        found: Json = json.loads(body, parse_constant=_no_constant, parse_int=_integer)
    except RecursionError:
        raise InvalidArgumentError("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidArgumentError(f"the body is not JSON: {error}") from None
    except UnicodeDecodeError:
        raise InvalidArgumentError("the body is not JSON: it is not UTF-8 text") from None
    return found


def _integer(digits: str) -> int:
    """A whole number of JSON. Python reads no longer ones, and no field of ours takes a thousandth of that."""
    if len(digits) > _DIGITS_MAX:
        raise InvalidArgumentError(f"the body holds a number of {len(digits)} digits; no field takes one so long")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise InvalidArgumentError(f"the body is not JSON: {name} is not a JSON number")


def _too_large(bytes_max: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"the body is larger than {bytes_max} bytes", reason=Reason.BODY_TOO_LARGE)
