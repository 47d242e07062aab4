"""What happens around every served call: who calls, its trace, its metrics, its errors.

A servicer raises `KatsuraError`; the caller gets the canonical status. Anything else that escapes is our bug: it is
logged with its traceback and answered INTERNAL without details.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind

from katsura.domain.errors import InternalError, InvalidArgumentError, KatsuraError
from katsura.domain.ids import TenantId
from katsura.domain.usage import Usage
from katsura.rpc import context as calls
from katsura.rpc import status
from katsura.telemetry import log, metrics, names, trace

_LOG = log.get(__name__)
_SECONDS = metrics.histogram(names.RPC_SECONDS, "Seconds a served call took.", ("method", "code"))
_IN_FLIGHT = metrics.gauge(names.RPC_IN_FLIGHT, "Calls being served.")


_Read = Callable[[bytes], Any]


class Admission(Protocol):
    """Decides whether a call of a tenant may begin."""

    async def admit(self, method: str, tenant: TenantId, request: object = None) -> None:
        """Return, or raise the KatsuraError that the caller gets. `method` is the call's own name, as in `Grow`, and
        `request` its message, None where requests are streamed."""
        ...

    async def fits(self, tenant: TenantId, adds: Usage) -> None:
        """Return, or raise where that much more would be too much: what a stream is found to add while it is read."""
        ...


class Boundary:
    """What every method of ours is served behind. Where servicers are added, in place of the server itself.

    Not an interceptor of gRPC's, which costs a third of an empty call: here each method is wrapped once.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        internal_token: str,
        resolver: calls.TenantResolver | None,
        admission: Admission | None = None,
    ) -> None:
        self._server = server
        self._internal_token = internal_token
        self._resolver = resolver
        self._admission = admission
        self.active_count = 0
        _IN_FLIGHT.set_function(lambda: self.active_count)  # asked when metrics are, not told at every call

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code adds each service twice; the other way is the one that is served."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Serve the methods of a service."""
        wrapped = {name: self._wrapped(f"/{service}/{name}", handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)

    def _wrapped(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        read, write = _reader(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary, read), None, write)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream, read), None, write)
        if handler.stream_unary is not None:  # the request is an iterator of messages, and whoever takes one reads it
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.stream_unary), read, write)
        both: Any = handler.stream_stream
        return grpc.stream_stream_rpc_method_handler(self._stream(method, both), read, write)

    def _unary(
        self, method: str, serve: Callable[..., Awaitable[Any]], read: _Read | None = None
    ) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> object:
            with _Measured(self, method) as measured:
                try:
                    if read is not None:
                        request = read(request)
                    with await self._enter(method, context, None if read is None else request):
                        return await serve(request, context)
                except KatsuraError as error:
                    await measured.fail(context, error)
                except asyncio.CancelledError:
                    measured.code = "CANCELLED"
                    raise
                except Exception as error:  # noqa: BLE001  # the last line of defence: logged, answered INTERNAL
                    await measured.fail(context, _bug(method, error))
            raise AssertionError("abort returned")

        return call

    def _stream(
        self, method: str, serve: Callable[..., Any], read: _Read | None = None
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            with _Measured(self, method) as measured:
                try:
                    if read is not None:
                        request = read(request)
                    with await self._enter(method, context):
                        async for response in serve(request, context):
                            yield response
                except KatsuraError as error:
                    await measured.fail(context, error)
                except (asyncio.CancelledError, GeneratorExit):
                    measured.code = "CANCELLED"
                    raise
                except Exception as error:  # noqa: BLE001  # the last line of defence: logged, answered INTERNAL
                    await measured.fail(context, _bug(method, error))

        return call

    async def _enter(self, method: str, context: grpc.aio.ServicerContext[Any, Any], request: object = None) -> _Around:
        metadata = tuple(context.invocation_metadata() or ())
        call = await calls.incoming(metadata, self._internal_token, self._resolver)
        calls.enter(call)
        if self._admission is not None and call.tenant is not None:
            await self._admission.admit(method.rpartition("/")[2], call.tenant.tenant_id, request)
        parent = next((str(value) for key, value in metadata if key == calls.TRACEPARENT), "")
        return _Around(method, call, parent)


class _Around:
    """What a call is served in: the ids that its log lines carry, and its span."""

    __slots__ = ("_ids", "_method", "_span")

    def __init__(self, method: str, call: calls.CallContext, parent: str) -> None:
        tenant = call.tenant.tenant_id if call.tenant else ""
        self._method = method
        self._ids = log.ids(tenant=tenant, session=call.session_id, request=call.request_id)
        self._span = trace.span(names.SPAN_RPC_SERVER, {names.RPC_METHOD: method}, parent=parent, kind=SpanKind.SERVER)

    def __enter__(self) -> None:
        self._ids.__enter__()
        self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        ours = isinstance(error, Exception) and not isinstance(error, KatsuraError)
        bug = _bug(self._method, error) if ours else None  # logged here, where the line carries the ids of the call
        self._span.__exit__(kind, error, tb)
        self._ids.__exit__()
        if bug is not None:
            raise bug from error


class _Measured:
    """Counts and times one call, and remembers how it ended."""

    __slots__ = ("_boundary", "_method", "_start", "code")

    def __init__(self, boundary: Boundary, method: str) -> None:
        self.code = "OK"
        self._boundary = boundary
        self._method = method

    def __enter__(self) -> Self:
        self._boundary.active_count += 1
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        metrics.child(_SECONDS, self._method, self.code).observe(time.perf_counter() - self._start)
        self._boundary.active_count -= 1

    async def fail(self, context: grpc.aio.ServicerContext[Any, Any], error: KatsuraError) -> None:
        self.code = error.code
        await status.abort(context, error)


def _reader(deserialize: _Read | None) -> _Read:
    """What reads a message. gRPC itself answers UNKNOWN to one that cannot be read, and logs it as our fault."""
    assert deserialize is not None, "generated code names one for every method"

    def read(data: bytes) -> object:
        try:
            return deserialize(data)
        except DecodeError as error:
            raise InvalidArgumentError(
                "the message cannot be read: it is not one of this method's, or a text in it is not UTF-8"
            ) from error

    return read


def _bug(method: str, error: BaseException | None) -> InternalError:
    _LOG.error("a call failed by our own fault", exc=error, method=method)
    return InternalError("internal error; the log of this process has it under this request id")
