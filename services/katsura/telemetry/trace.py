"""Spans, and the W3C context that ties them together over gRPC and data-plane frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACER = trace.get_tracer("katsura")
_NOTHING: AbstractContextManager[Span] = nullcontext(trace.INVALID_SPAN)
_settled: bool | None = None
"""Whether spans are exported, once `settle` was called."""

Attributes = Mapping[str, str | int | float | bool]


def span(
    name: str, attributes: Attributes | None = None, *, parent: str = "", kind: SpanKind = SpanKind.INTERNAL
) -> AbstractContextManager[Span]:
    """Open a span for the block; an exception marks it as failed. Where nothing is traced it is nothing.

    Args:
        name: a `SPAN_*` of `names`.
        attributes: keyed by names of `names`; ids and counts only.
        parent: W3C traceparent of a remote parent; empty takes the current span.
        kind: OpenTelemetry span kind.
    """
    if not parent and not _exported() and not trace.get_current_span().get_span_context().is_valid:
        return _NOTHING
    return _span(name, attributes, parent, kind)


def settle() -> None:
    """Take it that nobody sets a tracer provider from now on: asking OpenTelemetry costs each span two microseconds."""
    global _settled  # noqa: PLW0603  one per process, as the provider is
    _settled = type(trace.get_tracer_provider()) is not trace.ProxyTracerProvider


def _exported() -> bool:
    return _settled if _settled is not None else type(trace.get_tracer_provider()) is not trace.ProxyTracerProvider


@contextmanager
def _span(name: str, attributes: Attributes | None, parent: str, kind: SpanKind) -> Iterator[Span]:
    context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
    with _TRACER.start_as_current_span(
        name, context=context, kind=kind, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def record(name: str, start_ns: int, end_ns: int, attributes: Attributes | None = None, *, parent: str = "") -> None:
    """Export a span that was timed elsewhere (a compute process sends its timings to its RPC process).

    Args:
        name: a `SPAN_*` of `names`.
        start_ns: nanoseconds since the Unix epoch; end_ns likewise.
        attributes: keyed by names of `names`.
        parent: W3C traceparent of the span it belongs to.
    """
    context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
    made = _TRACER.start_span(name, context=context, attributes=attributes, start_time=start_ns)
    made.end(end_ns)


def traceparent() -> str:
    """W3C traceparent of the current span, or empty where nothing is traced."""
    if not trace.get_current_span().get_span_context().is_valid:
        return ""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """Hexadecimal id of the current trace, or empty."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


@contextmanager
def attached(parent: str) -> Iterator[None]:
    """Make the remote span `parent` (a W3C traceparent, or empty) current for the block, without a span of its own."""
    if not parent:
        yield
        return
    token = otel_context.attach(_PROPAGATOR.extract({"traceparent": parent}))
    try:
        yield
    finally:
        otel_context.detach(token)
