"""Switch telemetry on, once per process, at the composition root."""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry import trace as otel_trace

from katsura.telemetry import log, trace


def configure(process: str, instance_id: str, environ: Mapping[str, str]) -> None:
    """Set up logs, and tracing where `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

    Without an endpoint the tracer stays OpenTelemetry's no-op: opening a span then costs about a microsecond.

    Args:
        process: role of this process (`memory`, `router`, ...).
        instance_id: which one of that role.
        environ: the process environment; reads KATSURA_LOG_FORMAT, KATSURA_LOG_LEVEL and the OTEL_ variables.
    """
    log_format = log.LogFormat(environ.get("KATSURA_LOG_FORMAT", log.LogFormat.HUMAN))
    log.configure(process, log_format, environ.get("KATSURA_LOG_LEVEL", "info"))
    endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    if not endpoint:
        trace.settle()
        return
    # Imported here: the SDK and its exporter take a third of a second that untraced processes need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {"service.name": f"katsura-{process}", "service.instance.id": instance_id, "process.pid": os.getpid()}
    )
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=500))
    otel_trace.set_tracer_provider(provider)
    trace.settle()
