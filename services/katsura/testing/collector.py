"""A real OTLP collector for tests: takes spans over gRPC and keeps them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """One exported span: `service` is the exporting process's service.name, ids are hexadecimal."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Listens on a free loopback port between `with` and its end; `endpoint` is what exporters are told."""

    def __init__(self) -> None:
        self._spans: list[SeenSpan] = []
        self._arrived = threading.Condition()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def Export(  # noqa: N802 - the name is the protocol's
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: object
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Keep what a process exports."""
        with self._arrived:
            for resource in request.resource_spans:
                service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        attributes = {a.key: str(a.value.string_value or a.value.int_value) for a in span.attributes}
                        ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                        self._spans.append(SeenSpan(service, span.name, *ids, attributes))
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, services: set[str], timeout_s: float) -> list[SeenSpan]:
        """Spans of the first trace that holds a span of every service in `services`.

        Raises:
            TimeoutError: none did in time; the message says what came.
        """

        def found() -> list[SeenSpan]:
            for trace_id in {span.trace_id for span in self._spans}:
                spans = [span for span in self._spans if span.trace_id == trace_id]
                if services <= {span.service for span in spans}:
                    return spans
            return []

        with self._arrived:
            if not self._arrived.wait_for(lambda: bool(found()), timeout_s):
                came = sorted({(span.service, span.name) for span in self._spans})
                raise TimeoutError(f"no trace holds spans of all of {sorted(services)}; came: {came}")
            return found()

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.stop(grace=None).wait()
